"""Multi-isotonic regression and bin-mean-shift under the published code's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vlcal._arrays import as_tensor
from vlcal.calibrators import NotFitted
from vlcal.compat.netcal.binning import isotonic
from vlcal.types import NoSamplesError, check_finite, check_labels

STEP = 1e-9  # times the probability: keeps the order inside a row
SOFTMAX_FIRST = ("histogram_binning", "isotonic_regression")


class MultiIsotonicRegression:
    """One isotonic function of all N x C probabilities, as the published code fits it.

    Quirk: it takes softmax of what it is given. The published pipeline gives it probabilities, so
    that softmax is applied twice; `vlcal.calibrators.MultiIsotonic` does it once. Rows of the
    result do not sum to one and may pass 1 by 1e-9.
    """

    def __init__(self) -> None:
        self.__name__ = "MultiIsotonicRegression"
        self._knots: tuple[np.ndarray, np.ndarray] | None = None

    def fit_transform(self, logit: Any, label: Any) -> np.ndarray:
        """Fit on [N, C] logits (or probabilities) and labels [N] or one-hot; their calibration.

        Raises:
            NoSamplesError: N is 0.
            ValueError: logits are not finite [N, C] with C >= 2, or labels do not fit.
        """
        who = type(self).__name__
        probs = softmax(who, logit)
        truth = as_tensor(f"{who}: label", label)
        if truth.ndim == 2:
            if truth.shape != probs.shape or not bool((truth.sum(1) == 1).all()):
                raise ValueError(f"{who}: label must be [N] or one-hot rows {probs.shape}")
            truth = truth.argmax(1)
        truth = check_labels(who, truth, *probs.shape)
        # scikit-learn merges values closer than the decimal digits of their precision
        ties = float(np.finfo(probs.dtype).resolution)
        knots = isotonic(probs, truth.numpy(), pooled=True, ties=ties)
        self._knots = knots.x.numpy(), knots.y.numpy()
        return self._calibrated(self._knots, probs)

    def transform(self, logit: Any) -> np.ndarray:
        """Calibrated [N, C], in the precision of the logits.

        Raises:
            NotFitted: `fit_transform` was not called.
            ValueError: logits are not finite [N, C] with C >= 2.
        """
        if self._knots is None:
            raise NotFitted("MultiIsotonicRegression: fit_transform comes before transform")
        return self._calibrated(self._knots, softmax(type(self).__name__, logit))

    def _calibrated(self, knots: tuple[np.ndarray, np.ndarray], probs: np.ndarray) -> np.ndarray:
        return np.interp(probs, *knots).astype(probs.dtype) + STEP * probs


class BinMeanShift:
    """A calibrator for every bin of proximity, as the published code does it.

    Args:
        method_name: what the calibrators are; "histogram_binning" and "isotonic_regression" get the
            softmax of the input. The published pipeline gives probabilities, so that softmax is
            applied twice (`vlcal.calibrators.ProximityBinned` does it once).
        method: makes a calibrator with `fit_transform(X, y)` and `transform(X)`.
        bin_strategy: "quantile" for bins between percentiles of the proximities of `fit_transform`,
            "uniform" for equal widths between the smallest and the largest.
        normalize_conf: divide the rows of `fit_transform` by their sums; those of `transform` are
            left as they are.
        proximity_bin: number of bins.
        **kwargs: for `method`.

    A bin without any row is skipped, where the published code fails.
    """

    def __init__(
        self,
        method_name: str,
        method: Callable[..., Any],
        bin_strategy: str = "quantile",
        normalize_conf: bool = False,
        proximity_bin: int = 10,
        **kwargs: Any,
    ) -> None:
        if bin_strategy not in ("quantile", "uniform"):
            raise ValueError(
                f"BinMeanShift: bin_strategy must be 'quantile' or 'uniform', got {bin_strategy!r}"
            )
        self.method_name, self.bin_strategy = method_name, bin_strategy
        self.normalize_conf, self.proximity_bin = normalize_conf, proximity_bin
        self.calibrators = [method(**kwargs) for _ in range(proximity_bin)]
        self.bin_edges: np.ndarray | None = None

    def fit_transform(self, logit: Any, proximity: Any, label: Any) -> np.ndarray:
        """Fit on [N, C] logits (or probabilities), proximities [N], labels [N]; their calibration.

        Raises:
            NoSamplesError: N is 0.
            ValueError: the arrays do not fit, or are not finite.
        """
        given, near = self._checked(logit, proximity)
        if self.bin_strategy == "quantile":
            self.bin_edges = np.percentile(near, np.linspace(0, 100, self.proximity_bin + 1))
        else:
            self.bin_edges = np.linspace(near.min(), near.max(), self.proximity_bin + 1)
        truth = np.asarray(label)
        if len(truth) != len(given):
            raise ValueError(f"BinMeanShift: label must be [N] = [{len(given)}], got {truth.shape}")
        probs = self._by_bin(
            given, near, lambda one, part, rows: one.fit_transform(part, truth[rows])
        )
        return probs / probs.sum(axis=1)[:, None] if self.normalize_conf else probs

    def transform(self, logit: Any, proximity: Any) -> np.ndarray:
        """Calibrated [N, C], each row by the calibrator of its bin.

        Raises:
            NotFitted: `fit_transform` was not called, or not with a row in that bin.
            ValueError: the arrays do not fit, or are not finite.
        """
        return self._by_bin(
            *self._checked(logit, proximity), lambda one, part, _: one.transform(part)
        )

    def _checked(self, logit: Any, proximity: Any) -> tuple[np.ndarray, np.ndarray]:
        given, near = matrix("BinMeanShift", logit), np.asarray(proximity)
        if near.shape != given.shape[:1] or not np.isfinite(near).all():
            raise ValueError(
                f"BinMeanShift: proximity must be finite [N] = [{len(given)}], got {near.shape}"
            )
        return given, near

    def _by_bin(
        self,
        given: np.ndarray,
        near: np.ndarray,
        use: Callable[[Any, np.ndarray, np.ndarray], np.ndarray],
    ) -> np.ndarray:
        if self.bin_edges is None:
            raise NotFitted("BinMeanShift: fit_transform comes before transform")
        if self.method_name in SOFTMAX_FIRST:
            given = softmax("BinMeanShift", given)
        bin_ = np.searchsorted(self.bin_edges[1:-1], near, side="right")
        parts = [np.flatnonzero(bin_ == b) for b in range(self.proximity_bin)]
        made = [
            use(one, given[rows], rows)
            for one, rows in zip(self.calibrators, parts, strict=True)
            if len(rows)
        ]
        return np.concatenate(made)[np.argsort(np.concatenate(parts))]


def matrix(who: str, logit: Any) -> np.ndarray:
    """Finite floating point [N, C] with N >= 1 and C >= 2."""
    tensor = as_tensor(f"{who}: logit", logit)
    if tensor.ndim != 2 or tensor.shape[1] < 2 or not tensor.is_floating_point():
        raise ValueError(
            f"{who}: logit must be floating point [N, C] with C >= 2, "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    if len(tensor) == 0:
        raise NoSamplesError(f"{who}: needs at least one sample, got none")
    check_finite(f"{who}: logit", tensor)
    return tensor.cpu().numpy()


def softmax(who: str, logit: Any) -> np.ndarray:
    """Softmax without a shift, as published: what ties there ties here."""
    with np.errstate(over="ignore"):
        e = np.exp(matrix(who, logit))
    if not np.isfinite(e).all():
        raise ValueError(f"{who}: logits above {np.log(np.finfo(e.dtype).max):.0f} overflow exp")
    return e / np.sum(e, 1)[:, None]

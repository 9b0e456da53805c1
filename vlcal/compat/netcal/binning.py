"""Histogram binning and isotonic regression with netcal's names: probabilities in and out."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vlcal.calibrators import NotFitted
from vlcal.calibrators.knots import Knots, fit_knots
from vlcal.compat.netcal.inputs import applicable, problem, refuse
from vlcal.ops.binning import check_bins
from vlcal.types import VlcalWarning

if TYPE_CHECKING:
    from typing_extensions import Self

# scikit-learn merges float64 values closer than this when it fits
TIES = 1e-15


class Binning:
    """One map of probabilities per class, as netcal 1.4 fits and applies them.

    Two columns, or one, are a binary problem: the map of the probability of class 1, [N] in and
    out. With more, every class that occurs among the labels has its map, the others get probability
    0, and rows are divided by their sum.

    Quirk: a row that is 0 in every class becomes NaN, with a warning that counts such rows.
    """

    def __init__(self, detection: bool, independent_probabilities: bool) -> None:
        self._who = f"netcal {type(self).__name__}"
        if detection:
            refuse(self._who, "detection", detection, "only classification is")
        self.detection = detection
        self.independent_probabilities = independent_probabilities
        self.num_classes: int | None = None

    def fit_transform(self, X: Any, y: Any) -> np.ndarray:
        """`fit`, then `transform` of the same probabilities."""
        return self.fit(X, y).transform(X)

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the maps."""
        probs, truth, self.num_classes = problem(self._who, X, y, self.independent_probabilities)
        if probs.ndim == 1:
            probs, truth = probs[:, None], truth - 1
        self._learn(probs, truth)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Calibrated probabilities, [N, C], or [N] of a binary problem.

        Raises:
            NotFitted: `fit` was not called.
            ValueError: X has other classes than those of `fit`, or is no probability.
        """
        if self.num_classes is None:
            raise NotFitted(f"{self._who}: fit comes before transform")
        probs = applicable(self._who, X, self.num_classes, self.independent_probabilities)
        if probs.ndim == 1:
            return self._apply(probs[:, None])[:, 0]
        calibrated = self._apply(probs).astype(self._dtype(probs))
        if self.independent_probabilities:
            return calibrated
        return np.clip(self._normalized(calibrated), 0, 1)

    def _normalized(self, values: np.ndarray) -> np.ndarray:
        total = values.sum(1, keepdims=True)
        if lost := int((total == 0).sum()):
            warnings.warn(
                f"{self._who}: {lost} of {len(values)} rows have probability 0 in every class and "
                "become NaN, as in netcal; vlcal.calibrators keeps the uncalibrated ones",
                VlcalWarning,
                stacklevel=3,
            )
        with np.errstate(invalid="ignore"):
            return values / total

    def _dtype(self, probs: np.ndarray) -> np.dtype:
        return np.dtype(np.float64)

    def _learn(self, probs: np.ndarray, truth: np.ndarray) -> None:
        """From [N, G] and the column of each row that is the answer, -1 for none."""
        raise NotImplementedError

    def _apply(self, probs: np.ndarray) -> np.ndarray:
        """The maps of [N, G], not normalized."""
        raise NotImplementedError


class HistogramBinning(Binning):
    """The share of a class among samples whose probability falls into the same bin.

    Quirks: `fit` closes bins on the left and rounds their edges to the precision of X, `transform`
    closes them on the right; an empty bin gives its midpoint.

    Args:
        bins: number of bins of equal width.
        equal_intervals: only True is supported; netcal 1.4 cannot apply the others either.
        detection: only False is supported.
        independent_probabilities: do not divide rows by their sum.

    Raises:
        NotImplementedError: an option is not supported; the message names it.
        ValueError: bins is not an integer >= 1.
    """

    def __init__(
        self,
        bins: int = 10,
        equal_intervals: bool = True,
        detection: bool = False,
        independent_probabilities: bool = False,
    ) -> None:
        super().__init__(detection, independent_probabilities)
        check_bins(self._who, bins)
        if not equal_intervals:
            refuse(self._who, "equal_intervals", False, "netcal 1.4 cannot transform with it")
        self.bins, self.equal_intervals = bins, equal_intervals

    def fit(
        self,
        X: Any,
        y: Any,
        random_state: int | None = None,
        tensorboard: bool = False,
        log_dir: str | None = None,
    ) -> Self:
        """Count the bins.

        Args:
            X: probabilities, [N] of class 1 or [N, C].
            y: labels [N] or one-hot [N, C].
            random_state: unused.
            tensorboard: unused.
            log_dir: unused.

        Raises:
            NoSamplesError: N is 0.
            ValueError: the arrays are no probabilities and labels.
        """
        return super().fit(X, y)

    def transform(
        self, X: Any, num_samples: int = 1, random_state: int | None = None
    ) -> np.ndarray:
        """Calibrated probabilities, [N, C] in the precision of X, or [N] float64 if binary.

        Raises:
            NotFitted: `fit` was not called.
            ValueError: X has other classes than those of `fit`, or is no probability.
        """
        return super().transform(X)

    def _dtype(self, probs: np.ndarray) -> np.dtype:
        return probs.dtype

    def _learn(self, probs: np.ndarray, truth: np.ndarray) -> None:
        self._edges = np.linspace(0, 1, self.bins + 1)
        cell = self._cells(probs, self._edges.astype(probs.dtype), "right")
        rows = np.flatnonzero(truth >= 0)
        size = probs.shape[1] * self.bins
        count = np.bincount(cell.ravel(), minlength=size).reshape(-1, self.bins)
        hits = np.bincount(cell[rows, truth[rows]], minlength=size).reshape(-1, self.bins)
        middle = 0.5 * (self._edges[:-1] + self._edges[1:])
        self._values = np.where(count > 0, hits / np.maximum(count, 1), middle)
        if probs.shape[1] > 1:
            self._values[hits.sum(1) == 0] = 0.0

    def _apply(self, probs: np.ndarray) -> np.ndarray:
        return self._values.ravel()[self._cells(probs, self._edges, "left")]

    def _cells(self, probs: np.ndarray, edges: np.ndarray, side: Any) -> np.ndarray:
        bin_ = np.searchsorted(edges[1:-1], probs.ravel(), side=side).reshape(probs.shape)
        return bin_ + np.arange(probs.shape[1]) * self.bins


class IsotonicRegression(Binning):
    """The best non-decreasing fit of being the label on the probability, scikit-learn's fit.

    Args:
        detection: only False is supported.
        independent_probabilities: do not divide rows by their sum.

    Raises:
        NotImplementedError: an option is not supported; the message names it.
    """

    def __init__(self, detection: bool = False, independent_probabilities: bool = False) -> None:
        super().__init__(detection, independent_probabilities)

    def _learn(self, probs: np.ndarray, truth: np.ndarray) -> None:
        self._knots = isotonic(probs.astype(np.float64), truth)

    def _apply(self, probs: np.ndarray) -> np.ndarray:
        x, y, offsets = (each.numpy() for each in self._knots)
        found = np.zeros(probs.shape)
        for column in np.flatnonzero(np.diff(offsets)):
            knots = slice(offsets[column], offsets[column + 1])
            found[:, column] = np.interp(probs[:, column], x[knots], y[knots])
        return found


def isotonic(
    probs: np.ndarray, truth: np.ndarray, pooled: bool = False, ties: float = TIES
) -> Knots:
    """Isotonic fits as scikit-learn makes them, one per column of [N, G] or one for all.

    Args:
        probs: [N, G]; not changed.
        truth: [N] column that is the answer, -1 for none.
        pooled: one function for all columns.
        ties: probabilities closer than this are one point.
    """
    answers = torch.from_numpy(truth)
    groups = probs.shape[1]
    # fit_knots writes into its blocks
    knots = fit_knots(
        lambda: iter([(torch.from_numpy(probs.copy()), answers)]),
        groups,
        pooled=pooled,
        ties=ties,
    )
    if groups == 1 and not len(knots.x):
        # no positive sample: 0 everywhere
        zero = torch.zeros(1, dtype=torch.float64)
        return Knots(zero, zero, torch.tensor([0, 1]))
    return knots

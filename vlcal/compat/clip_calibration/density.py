"""Density-ratio calibration under the published code's names."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vlcal._arrays import as_tensor
from vlcal.calibrators import DensityRatio, NotFitted
from vlcal.types import NoSamplesError, VlcalWarning

WHO = "DensityRatioCalibration"


class DensityRatioCalibration:
    """Replace the confidence by p1 / (p1 + r p0) and scale the other probabilities to the rest.

    p1 and p0 are Gaussian kernel densities of (confidence, proximity) of the correct and of the
    wrong hold-out samples, r is how many wrong there are for one correct.

    Quirks kept: the arg-max may change; a row whose confidence is exactly 1 gets NaN for all other
    classes, with a warning that counts such rows. Densities are float32 sums: probabilities agree
    with statsmodels' to about 1e-6.

    Attributes:
        false_true_ratio: r, after `fit`.
    """

    def __init__(self) -> None:
        self.false_true_ratio: float | None = None
        self._ratio: DensityRatio | None = None

    def fit(
        self,
        probs: Any,
        preds: Any,
        true: Any,
        proximity: Any,
        bandwidth: str | Sequence[float] = "normal_reference",
    ) -> None:
        """Remember the correct and the wrong hold-out samples.

        Args:
            probs: [N, C] probabilities.
            preds: [N] predicted classes.
            true: [N] labels.
            proximity: [N] exp(-mean distance to the nearest hold-out images).
            bandwidth: "normal_reference" for 1.06 std n^(-1/6) in each dimension and set, or two
                numbers for both sets.

        Raises:
            NoSamplesError: N is 0.
            ValueError: the arrays do not fit; there are fewer than three correct or wrong samples;
                or another rule of statsmodels is named.
        """
        points = _points(probs, proximity)
        right = as_tensor(f"{WHO}: preds", preds) == as_tensor(f"{WHO}: true", true)
        if right.shape != (len(points),):
            raise ValueError(
                f"{WHO}: preds and true must be [N] = [{len(points)}], got {tuple(right.shape)}"
            )
        if isinstance(bandwidth, str) and bandwidth != "normal_reference":
            raise ValueError(
                f"{WHO}: bandwidth must be 'normal_reference' or two numbers, got {bandwidth!r}"
            )
        self._ratio = DensityRatio().fit_points(points, right)
        if not isinstance(bandwidth, str):
            self._ratio.bandwidths_ = torch.tensor([list(bandwidth)] * 2, dtype=torch.float64)
        correct = int(right.sum())
        self.false_true_ratio = (len(points) - correct) / correct

    def predict(self, probs: Any, proximities: Any) -> np.ndarray:
        """Calibrated probabilities [N, C] float64.

        Raises:
            NotFitted: `fit` was not called.
            NoSamplesError: N is 0.
            ValueError: the arrays do not fit, or are no probabilities.
        """
        if self._ratio is None:
            raise NotFitted(f"{WHO}: fit comes before predict")
        top = self._ratio.at(_points(probs, proximities)).numpy()
        given = np.asarray(probs)
        rows, predicted = np.arange(len(given)), given.argmax(-1)
        others = given.copy()
        others[rows, predicted] = 0
        total = others.sum(-1)
        if lost := int((total == 0).sum()):
            warnings.warn(
                f"{WHO}: {lost} of {len(given)} rows have a confidence of exactly 1 and become "
                "NaN, as in the published code; vlcal.calibrators.DensityRatio has no such rows",
                VlcalWarning,
                stacklevel=2,
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            made = others * ((1 - top) / total)[:, None]
        made[rows, predicted] = top
        return made


def _points(probs: Any, proximity: Any) -> torch.Tensor:
    """[N, 2] float32 confidence and proximity."""
    rows, near = as_tensor(f"{WHO}: probs", probs), as_tensor(f"{WHO}: proximity", proximity)
    if rows.ndim != 2 or near.shape != rows.shape[:1]:
        raise ValueError(
            f"{WHO}: probs must be [N, C] and proximity [N], "
            f"got {tuple(rows.shape)} and {tuple(near.shape)}"
        )
    if len(rows) == 0:
        raise NoSamplesError(f"{WHO}: needs at least one sample, got none")
    if not bool(((rows >= 0) & (rows <= 1)).all()):
        raise ValueError(f"{WHO}: probs must be in 0..1 and not NaN")
    return torch.stack([rows.amax(-1).float(), near.float()], -1)

"""ECE, ACE and MCE with netcal's constructor, its `measure`, and its reading of the arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vlcal.compat.netcal.inputs import clipped, confidences, labels, refuse, tensors
from vlcal.ops import bin_statistics
from vlcal.ops.binning import check_bins


class Miscalibration:
    """Metrics over bins [lo, hi) of confidence, as netcal 1.4 computes them.

    With more than two different labels, a sample's confidence is its largest probability and it
    counts as correct where that is the label's. With two labels or one, the confidence is the
    probability of class 1, the only or second column of X, and the label is what it is compared
    with. Confidences are first clipped to eps..1 - eps of their precision.

    Args:
        bins: number of bins.
        equal_intervals: bins of equal width; otherwise between quantiles of the confidences.
        detection: only False is supported.
        sample_threshold: bins with fewer samples have no gap, but their samples count in N.

    Raises:
        NotImplementedError: an option is not supported; the message names it.
        ValueError: bins is not an integer >= 1.
    """

    def __init__(
        self,
        bins: int = 10,
        equal_intervals: bool = True,
        detection: bool = False,
        sample_threshold: int = 1,
    ) -> None:
        who = f"netcal {type(self).__name__}"
        if detection:
            refuse(who, "detection", detection, "only classification is")
        check_bins(who, bins)
        self.bins, self.equal_intervals = bins, equal_intervals
        self.detection, self.sample_threshold = detection, sample_threshold

    def measure(
        self,
        X: Any,
        y: Any,
        batched: bool = False,
        uncertainty: str | None = None,
        return_map: bool = False,
        return_num_samples: bool = False,
        return_uncertainty_map: bool = False,
    ) -> float:
        """The error of probabilities X [N] or [N, C] for labels y [N] or one-hot [N, C].

        Args:
            X: probabilities, or a list of such arrays if batched.
            y: labels, or a list of such arrays if batched.
            batched: the mean over the arrays of the lists.
            uncertainty: only None is supported.
            return_map: only False is supported.
            return_num_samples: only False is supported.
            return_uncertainty_map: only False is supported.

        Raises:
            NotImplementedError: an option is not supported; the message names it.
            NoSamplesError: N is 0.
            ValueError: the arrays are no probabilities and labels; or there are two labels or fewer
                and more than two columns; or quantiles coincide. netcal fails there as well.
        """
        who = f"netcal {type(self).__name__}"
        for option, value in (
            ("uncertainty", uncertainty),
            ("return_map", return_map),
            ("return_num_samples", return_num_samples),
            ("return_uncertainty_map", return_uncertainty_map),
        ):
            if value:
                refuse(who, option, value, "only the number itself is returned")
        pairs = zip(X, y, strict=True) if batched else ((X, y),)
        return float(np.mean([self._error(who, *pair) for pair in pairs]))

    def _error(self, who: str, X: Any, y: Any) -> float:
        confidence, matched = outcomes(who, X, y)
        edges = self._edges(confidence)
        # netcal counts between these edges and averages between them in the precision of X
        rounded = edges.astype(confidence.dtype).astype(np.float64)
        if (np.diff(rounded) <= 0).any():
            raise ValueError(
                f"{who}: equal_intervals=False needs {self.bins} different quantiles, but many "
                "confidences are equal; use fewer bins, or vlcal.metrics.ace"
            )
        pairs = tensors(confidence, matched)
        bins, means = (
            bin_statistics(*pairs, closed="left", edges=torch.from_numpy(each))
            for each in (edges, rounded)
        )
        count = bins.count.double().numpy()
        gaps = np.where(count < self.sample_threshold, 0.0, means.gaps().abs().numpy())
        return float(self._reduce(gaps, count))

    def _edges(self, confidence: np.ndarray) -> np.ndarray:
        edges = np.linspace(0, 1, self.bins + 1)
        if not self.equal_intervals:
            edges[1:-1] = np.quantile(confidence, edges)[1:-1]
        return edges

    def _reduce(self, gaps: np.ndarray, count: np.ndarray) -> float:
        raise NotImplementedError


class ECE(Miscalibration):
    """Expected calibration error: the sum over bins of (n_b / N) |gap_b|."""

    def _reduce(self, gaps: np.ndarray, count: np.ndarray) -> float:
        return (gaps * count).sum() / count.sum()


class ACE(Miscalibration):
    """Average calibration error: the mean of |gap_b| over the bins that are not empty.

    It is not the adaptive calibration error of `vlcal.metrics.ace`.
    """

    def _reduce(self, gaps: np.ndarray, count: np.ndarray) -> float:
        return gaps.sum() / (count > 0).sum()


class MCE(Miscalibration):
    """Maximum calibration error: the largest |gap_b|."""

    def _reduce(self, gaps: np.ndarray, count: np.ndarray) -> float:
        return gaps.max()


def outcomes(who: str, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Confidence [N] and match [N] of every sample, as netcal reads its arrays."""
    probs = clipped(confidences(who, X))
    truth = labels(who, y, len(probs))
    wide: Sequence[int] = probs.shape[1:]
    if len(np.unique(truth)) > 2:
        columns = probs.reshape(len(probs), -1)
        return columns.max(1), columns.argmax(1) == truth
    if wide and wide[0] > 2:
        raise ValueError(
            f"{who}: with two different labels or fewer, X must have one or two columns, got "
            f"{wide[0]}; vlcal.evaluate has no such rule"
        )
    if truth.max() > 1:
        raise ValueError(f"{who}: two labels must be 0 and 1, got {np.unique(truth).tolist()}")
    return (probs[:, -1] if wide else probs), truth == 1

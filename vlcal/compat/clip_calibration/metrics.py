"""The metrics of the published code of DAC (`tools/metrics.py`), its names and its rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlcal._arrays import as_tensor
from vlcal.metrics import convention, ece, mce_weighted
from vlcal.metrics.cells import equal_width, quantiles
from vlcal.ops import group_statistics
from vlcal.types import NoSamplesError, Outcomes

DAC = convention("dac2024")
# multi-isotonic regression adds 1e-9 times the probability, so that its confidences pass 1
MOST = 1 + 1e-6


def ECE(conf: Any, pred: Any, gt: Any, conf_bin_num: int = 10) -> np.float64:
    """Expected calibration error over bins [lo, hi), as the published code computes it.

    Quirk: a confidence of exactly 1 counts in the weight of the last bin but not in its means, and
    one above 1 (multi-isotonic regression makes them) in nothing but N. Ten samples at 1, half of
    them wrong, have ECE 0.

    Args:
        conf: [N] confidences in 0..1.
        pred: [N] predicted classes.
        gt: [N] true classes.
        conf_bin_num: bins of equal width.

    Raises:
        NoSamplesError: N is 0.
        ValueError: shapes disagree, or a confidence is NaN or outside 0..1. The published code
            gives such a sample no gap; here it is an error.
    """
    confidence, correct = _samples("ECE", conf, pred, gt)
    kept = confidence <= 1
    if not bool(kept.any()):
        return np.float64(0.0)
    seen = Outcomes(confidence[kept], correct[kept])
    share = int(kept.sum()) / len(kept)
    return np.float64(share * ece(seen, replace(DAC, n_bins=conf_bin_num)))


def MCE(conf: Any, pred: Any, gt: Any, conf_bin_num: int = 10) -> np.float64:
    """The largest (n_b / N) |accuracy_b - confidence_b| over bins [lo, hi), 1 in the last.

    Quirk: the published code calls this mass-weighted maximum MCE; `vlcal.metrics.mce` is the
    textbook's. Arguments and errors as `ECE`.
    """
    confidence, correct = _samples("MCE", conf, pred, gt)
    seen = Outcomes(confidence.clamp(max=1), correct)
    return np.float64(mce_weighted(seen, replace(DAC, n_bins=conf_bin_num)))


def AdaptiveECE(conf: Any, pred: Any, gt: Any, conf_bin_num: int = 10) -> np.float64:
    """ECE over bins between the percentiles of the confidences, weighted by their counts.

    The bins are those of scikit-learn's KBinsDiscretizer when the code was published: linear
    interpolation, bins narrower than 1e-8 dropped. It thinned samples above 200,000, this does not.
    Arguments and errors as `ECE`.
    """
    confidence, correct = _samples("AdaptiveECE", conf, pred, gt)
    cell = quantiles(confidence, conf_bin_num)
    return _error(cell, confidence, correct, conf_bin_num)


def PIECE(
    conf: Any,
    knndist: Any,
    pred: Any,
    gt: Any,
    dist_bin_num: int = 10,
    conf_bin_num: int = 10,
    knn_strategy: str = "quantile",
) -> np.float64:
    """Proximity-informed ECE: over pairs of a bin of `knndist` and a bin of confidence.

    Args:
        conf: [N] confidences in 0..1.
        knndist: [N] distances or proximities, in any unit.
        pred: [N] predicted classes.
        gt: [N] true classes.
        dist_bin_num: bins of `knndist`.
        conf_bin_num: bins of equal width [lo, hi) of the confidence, 1 in the last.
        knn_strategy: "quantile" for bins as in `AdaptiveECE`, "uniform" for equal widths.

    Raises:
        NoSamplesError: N is 0.
        ValueError: as `ECE`; or `knndist` is not finite; or another strategy is named.
    """
    confidence, correct = _samples("PIECE", conf, pred, gt)
    near = as_tensor("PIECE: knndist", knndist)
    if near.shape != confidence.shape or not bool(torch.isfinite(near).all()):
        raise ValueError(
            f"PIECE: knndist must be finite [N] = {list(confidence.shape)}, "
            f"got {list(near.shape)} with {int((~torch.isfinite(near)).sum())} that are not"
        )
    if knn_strategy not in _DISTANCE_BINS:
        raise ValueError(
            f"PIECE: knn_strategy must be 'quantile' or 'uniform', got {knn_strategy!r}"
        )
    cell = _DISTANCE_BINS[knn_strategy](near, dist_bin_num) * conf_bin_num
    cell = cell + equal_width(confidence, conf_bin_num, "left")
    return _error(cell, confidence, correct, dist_bin_num * conf_bin_num)


def compute_acc_bin(
    conf_thresh_lower: float, conf_thresh_upper: float, conf: Any, pred: Any, true: Any
) -> tuple[float, float, int]:
    """Accuracy, mean confidence and number of the samples in (lower, upper]; zeros if none."""
    confidence, correct = _samples("compute_acc_bin", conf, pred, true)
    inside = (confidence > conf_thresh_lower) & (confidence <= conf_thresh_upper)
    count = int(inside.sum())
    if not count:
        return 0.0, 0.0, 0
    return int(correct[inside].sum()) / count, float(confidence[inside].mean()), count


def _samples(who: str, conf: Any, pred: Any, gt: Any) -> tuple[Tensor, Tensor]:
    """Confidences [N] float64 and whether each prediction is right."""
    confidence = as_tensor(f"{who}: conf", conf).double()
    predicted, labels = as_tensor(f"{who}: pred", pred), as_tensor(f"{who}: gt", gt)
    shapes = [tuple(each.shape) for each in (confidence, predicted, labels)]
    if confidence.ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(
            f"{who}: conf, pred and gt must be [N] each, got {', '.join(map(str, shapes))}"
        )
    if len(confidence) == 0:
        raise NoSamplesError(f"{who}: needs at least one sample, got none")
    bad = ~((confidence >= 0) & (confidence <= MOST))
    if bool(bad.any()):
        first = int(bad.int().argmax())
        raise ValueError(
            f"{who}: conf must be in 0..1 and not NaN, got {float(confidence[first]):g} in row "
            f"{first} ({int(bad.sum())} such rows)"
        )
    return confidence, predicted == labels


def _error(cell: Tensor, confidence: Tensor, correct: Tensor, n_cells: int) -> np.float64:
    return np.float64(group_statistics(cell, confidence.clamp(max=1), correct, n_cells).ece())


def _uniform(values: Tensor, n_bins: int) -> Tensor:
    """Bins of equal width between the smallest and the largest value, closed on the left."""
    array = values.numpy()
    # in the precision of the values, as scikit-learn makes them
    edges = np.linspace(array.min(), array.max(), n_bins + 1)
    return torch.from_numpy(np.searchsorted(edges[1:-1], array, side="right"))


_DISTANCE_BINS = {"quantile": quantiles, "uniform": _uniform}

"""Which bin a value is in: bins of equal width, and three rules for bins of equal count."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def equal_width(values: Tensor, n_bins: int, closed: str) -> Tensor:
    """Bin 0..n_bins-1 of values in 0..1, with the edges of `vlcal.ops.bin_statistics`."""
    inner = torch.from_numpy(np.linspace(0.0, 1.0, n_bins + 1)[1:-1]).to(values.device)
    return torch.bucketize(values.double(), inner, right=closed == "left")


def whole_ties(values: Tensor, n_bins: int) -> Tensor:
    """Bins of equal count in which equal values always share a bin.

    Values that occupy the ranks r..s-1 of N go to bin floor(n_bins * (r + s) / (2 N)), the bin in
    which the middle of the run lies. Without ties the counts differ by at most one; with ties some
    bins hold more and some stay empty. Integer arithmetic: order and duplication of the samples
    change nothing.
    """
    _, run, count = values.unique(return_inverse=True, return_counts=True)
    end = count.cumsum(0)
    return (n_bins * (2 * end - count)).div(2 * len(values), rounding_mode="floor")[run]


def quantiles(values: Tensor, n_bins: int) -> Tensor:
    """Bins between percentiles, as scikit-learn's KBinsDiscretizer made them in 2024.

    Percentiles are interpolated linearly, bins narrower than 1e-8 are dropped, a value on an inner
    edge belongs to the upper bin, a constant has one bin. Unlike the discretizer, large samples are
    not thinned before the percentiles are taken.
    """
    array = values.double().cpu().numpy()
    edges = np.percentile(array, np.linspace(0, 100, n_bins + 1))
    edges = edges[np.ediff1d(edges, to_begin=np.inf) > 1e-8]
    return torch.from_numpy(np.searchsorted(edges[1:-1], array, side="right")).to(values.device)


def interpolated_ranks(values: Tensor, n_bins: int) -> Tensor:
    """Bins (lo, hi] between values interpolated at every N / n_bins-th rank, the first at rank 0.

    The smallest value is in no bin, which is cell -1, and so is everything when all values agree.
    """
    array, n = values.cpu().numpy(), len(values)
    edges = np.interp(np.linspace(0, n, n_bins + 1), np.arange(n), np.sort(array))
    # compared in the precision of the values
    edges = torch.from_numpy(edges).to(values)
    return torch.bucketize(values, edges) - 1


EQUAL_MASS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "whole ties": whole_ties,
    "quantiles": quantiles,
    "interpolated ranks": interpolated_ranks,
}

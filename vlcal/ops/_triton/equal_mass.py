"""Statistics over bins of equal count on a GPU, exact; nothing here waits for the device.

`by_sort` sorts all samples, for any number of bins and either rule for ties. `by_cells` reads them
twice instead and needs the kernels in CUDA C++. Its first pass adds up the samples by the 16
leading bits of the confidence. Its second pass splits the cells that hold a border of two bins.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlcal.ops._triton import binning
from vlcal.ops.reference import CONFIDENCE_UNIT

CELLS = (0x3F800000 >> 16) + 1
VALUES = 1 << 16
COUNT = (1 << 32) - 1  # a pair is count | correct << 32
MOST_BINS = 64  # every border may take a table of VALUES


def by_sort(
    confidence: Tensor, correct: Tensor, n_bins: int, together: bool
) -> tuple[Tensor, Tensor]:
    """By a stable sort of all samples: any number of bins, either rule for ties."""
    n = len(confidence)
    values, order = confidence.float().sort(stable=True)
    twice = 2 * torch.arange(n, device=values.device) + 1
    if together:
        first = torch.searchsorted(values, values)
        twice = first + torch.searchsorted(values, values, right=True)
    return binning.group_statistics(_bin(twice, n, n_bins), values, correct[order], n_bins)


def by_cells(
    confidence: Tensor,
    correct: Tensor,
    n_bins: int,
    cells: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    values: Callable[[Tensor, Tensor, Tensor, int], Tensor],
) -> tuple[Tensor, Tensor]:
    """In two passes over the samples; equal ones stay together.

    Args:
        confidence: [N] in any floating type but float64, N < 2^31.
        correct: [N] bool.
        n_bins: at most MOST_BINS.
        cells: of these two, sums [2, CELLS] int64 of pairs and of units, and the number of bad
            rows, which are in no sum.
        values: of these two, a slot [CELLS] int32 and the number of slots, pairs [slots, VALUES]
            int64 of the cells with slot 1 and more.
    """
    n = len(confidence)
    (pairs, units), bad = cells(confidence, correct)
    count = pairs & COUNT
    end = count.cumsum(0)
    start = end - count
    index = _bin(2 * start + 1, n, n_bins)
    cut = (count > 0) & (index != _bin(2 * end - 1, n, n_bins))
    slots = n_bins - 1
    table = _by_bin(index, torch.stack([count, pairs >> 32, units]) * ~cut, n_bins)
    if not slots:
        return table, bad
    slot = torch.where(cut, cut.cumsum(0), 0)
    cell = slot.new_zeros(slots + 1).scatter_(0, slot, torch.arange(CELLS, device=slot.device))[1:]
    inner = values(confidence, correct, slot.int(), slots)
    count = inner & COUNT
    end = start[cell, None] + count.cumsum(1)
    index = _bin(2 * end - count, n, n_bins)
    units = count * _units(cell[:, None] * VALUES + torch.arange(VALUES, device=cell.device))
    inner = torch.stack([count, inner >> 32, units])
    return table + _by_bin(index, inner, n_bins).sum(1), bad


def _by_bin(index: Tensor, values: Tensor, n_bins: int) -> Tensor:
    """Sums [..., B] of values [..., L] over each bin, whose index [..., L] ascends.

    Running sums where the bins begin: thousands of atomic additions to a few places would queue.
    """
    edges = torch.arange(n_bins + 1, device=index.device).expand(*index.shape[:-1], n_bins + 1)
    at = torch.searchsorted(index.contiguous(), edges.contiguous())
    at = at.expand(len(values), *at.shape)
    before = values.cumsum(-1).gather(-1, (at - 1).clamp(min=0)) * (at > 0)
    return before.diff(dim=-1)


def _bin(twice: Tensor, n: int, n_bins: int) -> Tensor:
    """Bin of a middle rank, given twice; what is beyond the last rank holds no sample."""
    return (n_bins * twice).div(2 * max(n, 1), rounding_mode="floor").clamp(max=n_bins - 1)


def _units(bits: Tensor) -> Tensor:
    # bits of what is larger than 1 hold no sample
    values = bits.clamp(max=0x3F800000).int().view(torch.float32)
    return (values.double() / CONFIDENCE_UNIT).round().long()

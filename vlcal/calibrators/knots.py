"""Exact isotonic regression of many groups of probabilities at once, as knots of straight lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlcal.calibrators.pooling import Blocks, Columns, packed, pooled_blocks

# probabilities [R, G], and per row the column that is the answer, -1 for none
Answers = Iterator[tuple[Tensor, Tensor]]


class Knots(NamedTuple):
    """One non-decreasing, piecewise linear function per group; a group may have none.

    Args:
        x: [K] float64, ascending inside a group.
        y: [K] float64 in 0..1.
        offsets: [G + 1] int64; group g has the knots offsets[g] to offsets[g + 1] - 1.
    """

    x: Tensor
    y: Tensor
    offsets: Tensor


def fit_knots(
    blocks: Callable[[], Answers], groups: int, *, pooled: bool = False, ties: float = 0.0
) -> Knots:
    """Least-squares non-decreasing fit of "is the answer" on the probability, for every column.

    Probabilities below the smallest one of an answer have fit 0 and only their range matters, so
    all others alone are kept and sorted. Means are compared in integers. Equal probabilities are
    one point with the mean of their answers; a fit without answers has no knots.

    Args:
        blocks: gives the same blocks every time it is called: twice.
        groups: G, the number of columns.
        pooled: one function for all columns.
        ties: probabilities closer than this to the lowest of their point belong to it.
    """
    first = _smallest_answers(blocks(), groups, pooled)
    if ties:
        first = torch.where(first.isfinite(), -1.0, first)
    parts: list[Columns] = []
    lowest, highest = torch.full_like(first, torch.inf), torch.full_like(first, -1.0)
    for probs, answer in blocks():
        keep = probs >= first.to(probs)
        group, x, y = _kept(probs, answer, keep)
        parts.append(packed(group * (not pooled), x, y, ties))
        lowest = torch.minimum(lowest, probs.amin(0).cpu().double())
        below = probs.masked_fill_(keep, -1.0)  # the block is nobody else's
        highest = torch.maximum(highest, below.amax(0).cpu().double())
    group, x = _ends(lowest, highest, first.isfinite() & (highest >= 0))
    y = np.zeros(len(x), dtype=bool)
    parts.append(packed(group * (not pooled), x.astype(_float(parts)), y, ties))
    columns = tuple(np.concatenate(each) for each in zip(*parts, strict=True))
    parts.clear()
    groups = 1 if pooled else groups
    return _knots(pooled_blocks(columns, groups, ties), groups)


def check_knots(who: str, x: Any, y: Any, offsets: Any, groups: int | None) -> None:
    """Refuse loaded knots that are none: wrong kinds, sizes or order. All None is not fitted."""
    if all(each is None for each in (x, y, offsets)):
        return
    if not all(isinstance(each, Tensor) and each.ndim == 1 for each in (x, y, offsets)):
        raise ValueError(f"{who}: knots must be three tensors of one dimension")
    if (
        x.dtype != torch.float64
        or y.dtype != torch.float64
        or offsets.dtype != torch.int64
        or len(x) != len(y)
        or len(offsets) < 2
        or int(offsets[0]) != 0
        or int(offsets[-1]) != len(x)
        or bool((offsets.diff() < 0).any())
        or groups not in (None, len(offsets) - 1)
    ):
        raise ValueError(f"{who}: knots and their offsets do not fit together")
    same = torch.ones(len(x), dtype=torch.bool)
    same[offsets[:-1][offsets[:-1] < len(x)]] = False  # the first of a group follows none
    inside = bool(((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)).all())
    if not inside or bool(((x.diff() <= 0) | (y.diff() < 0))[same[1:]].any()):
        raise ValueError(f"{who}: knots must ascend inside 0..1")


class Lines(NamedTuple):
    """Knots ready to be evaluated on one device: the line that begins at each of them.

    Args:
        knots: the functions.
        slope: [K] of the line to the next knot of the group; 0 at its last.
        top: [K] y of that knot.
    """

    knots: Knots
    slope: Tensor
    top: Tensor


def lines_of(knots: Knots, device: torch.device) -> Lines:
    """The lines between the knots."""
    x, y, offsets = (each.to(device) for each in knots)
    after = torch.arange(1, len(x) + 1, device=device)
    after[offsets[1:][offsets[1:] > offsets[:-1]] - 1] -= 1
    width = x[after] - x
    slope = (y[after] - y) / width.where(width > 0, 1.0)
    return Lines(Knots(x, y, offsets), slope, y[after])


def interpolate(lines: Lines, x: Tensor, group: Tensor | None) -> Tensor:
    """The function of its group at each x [M], float64; outside its knots that of the nearest.

    Args:
        lines: of groups that have knots.
        x: [M] floating point.
        group: [M] int64; None if there is one group.
    """
    knots, x = lines.knots, x.double()
    if group is None:
        at = torch.searchsorted(knots.x, x, right=True).sub_(1).clamp_(min=0)
    else:
        at = _bisect(knots, x, group)
    value = (x - knots.x.take(at)).clamp_(min=0).mul_(lines.slope.take(at))
    # rounding must not carry a value above the next knot, or order would be lost there
    return torch.minimum(value.add_(knots.y.take(at)), lines.top.take(at))


def flat_below(knots: Knots) -> tuple[Tensor, Tensor]:
    """Per group the value of its first knots [G], and the x up to which it holds [G].

    A group without knots has value 0 everywhere.
    """
    starts, ends = knots.offsets[:-1], knots.offsets[1:]
    some = ends > starts
    if not bool(some.any()):
        return torch.zeros(len(starts)).double(), torch.full((len(starts),), torch.inf).double()
    at = starts.clamp(max=len(knots.x) - 1)
    second = torch.where(at + 1 < ends, at + 1, at)
    same = knots.y[second] == knots.y[at]
    until = torch.where(same, knots.x[second], knots.x[at])
    return knots.y[at].where(some, 0.0), until.where(some, torch.inf)


def _smallest_answers(blocks: Answers, groups: int, pooled: bool) -> Tensor:
    """[G] float64 smallest probability of an answer; infinite where there is none."""
    first = torch.full((groups,), torch.inf, dtype=torch.float64)
    for probs, answer in blocks:
        rows = (answer >= 0).nonzero()[:, 0]
        column = answer[rows]
        own = probs[rows, column].cpu().double()
        first = first.scatter_reduce(0, column.cpu(), own, "amin")
    return first.amin().expand(groups) if pooled else first


def _kept(probs: Tensor, answer: Tensor, keep: Tensor) -> Columns:
    """Column, probability and whether it is the answer, of the entries kept."""
    flat = keep.flatten().nonzero()[:, 0]
    row = torch.div(flat, probs.shape[1], rounding_mode="floor")
    column = flat - row * probs.shape[1]
    found = (column.int(), probs.flatten()[flat], answer[row] == column)
    return tuple(each.cpu().numpy() for each in found)


def _ends(lowest: Tensor, highest: Tensor, some: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest of the entries not kept; how many lie between changes nothing."""
    column = some.nonzero()[:, 0].repeat(2).int()
    return column.numpy(), torch.cat([lowest[some], highest[some]]).numpy()


def _float(parts: list[Columns]) -> type:
    """What the probabilities of these parts are."""
    return np.float32 if len(parts[0]) == 1 else parts[0][1].dtype.type


def _knots(blocks: Blocks, groups: int) -> Knots:
    """The two ends of each block; one where they are the same."""
    ends = np.stack([blocks.low, blocks.high], 1).ravel()
    keep = np.stack([np.ones(len(blocks.low), dtype=bool), blocks.high > blocks.low], 1).ravel()
    group = np.repeat(blocks.group, 2)[keep]
    offsets = np.searchsorted(group, np.arange(groups + 1))
    found = ends[keep], np.repeat(blocks.mean, 2)[keep], offsets
    return Knots(*(torch.from_numpy(np.ascontiguousarray(each)) for each in found))


def _bisect(knots: Knots, x: Tensor, group: Tensor) -> Tensor:
    """The last knot of its group that is not above x; the first one if all are."""
    sizes = knots.offsets.diff()
    at, last = knots.offsets.take(group), (knots.offsets - 1).take(group + 1)
    step = 1 << (max(int(sizes.max()) - 1, 0)).bit_length()
    while step := step >> 1:
        probe = torch.minimum(at + step, last)
        at = torch.where(knots.x.take(probe) <= x, probe, at)
    return at

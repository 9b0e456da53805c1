"""Exact k-NN on a GPU: a screen in fp16 on tensor cores, survivors re-ranked in float64.

The two kernels that see every pair are arguments (`Screens`), so that another way of writing them
is another pair of functions and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vlcal.ops import _triton, reference
from vlcal.ops._triton import search_exact, search_rows
from vlcal.ops._triton.search_bounds import (
    Doubts,
    Rows,
    doubts,
    frame_of,
    frame_of_queries,
    placed,
)
from vlcal.ops._triton.search_exact import Candidates

# keys whose largest score `group_max` returns as one
GROUP = 64
# one key in so many is sampled for the first threshold
SHARE = 16
# fewer queries than this do not pay for placing keys that are searched once
FEW_QUERIES = 16
# queries screened together: their fp16 rows stay in the cache while keys pass by
MOST_QUERIES = 8192
MOST_NEIGHBORS = 2048
FEWEST_ENTRIES, MOST_ENTRIES = 1024, 16384
# entries of all lists of one launch, and maxima of groups: 192 MiB and 256 MiB
MOST_LISTED = 1 << 24
MOST_MAXIMA = 1 << 26
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# a row that is not among the keys whichever the query
NEVER = -(1 << 62)


class Ladder(NamedTuple):
    """What floors may rise to while keys pass; see `search_bounds`. A screen may ignore it."""

    gap: Tensor  # [ceil(V / GAP_KEYS)] float32, most that a key scores less with the lower bias
    rungs: Tensor  # [Q, R] float32, ascending
    floors: Tensor  # [Q, R] float32, the floor once `wanted` keys are sure to score the rung
    wanted: int


class Screens(NamedTuple):
    """The two kernels that see every pair of a query and a key, launched on the current stream.

    Both score a pair as `q16 . k16 + bias`: products of fp16 accumulated in float32 by the tensor
    cores from 0, in any order, then one float32 addition of the bias. No argument needs to be
    checked: shapes, types and devices are right, and values are finite but for biases and floors,
    which may be -inf or +inf. There is at least one query and one key.

    group_max(q16, k16, bias) -> [Q, G] float32, any G >= ceil(V / GROUP): the largest score within
        each of G groups that hold every key exactly once, at most GROUP keys each (which ones does
        not matter). A group without a key, if the partition leaves one, is -inf.
    screen(q16, k16, bias, floor, capacity, ladder) -> (count, first, score): appends every pair
        with score >= floor[q] (so -inf >= -inf too, but never a key that does not exist).
        count [Q] int32: entries found, those beyond the capacity too, which are not stored;
        first [Q, capacity] int64 if V >= 2^31 else int32; score [Q, capacity] float32. Entries
        come in any order; what lies beyond count is not read. As the ladder allows, it may raise
        the floors, in place.

    Args of both: q16 [Q, D'] and k16 [V, D'] float16, D' a multiple of 64 (zeros behind D),
        innermost stride 1, and for k16 any multiple of D' as the stride of rows; bias [V] and
        floor [Q] float32, contiguous.

    An entry of `screen` may stand for several keys, `first + i * step` for i < width where that
    is below V; its score is the largest of theirs, and it is there if that reaches the floor.
    """

    group_max: Callable[[Tensor, Tensor, Tensor], Tensor]
    screen: Callable[..., tuple[Tensor, Tensor, Tensor]]
    width: int = 1
    step: int = 1


class Prepared(NamedTuple):
    """Keys and their fp16 shadow, ready for many searches."""

    keys: Tensor
    rows: Rows
    dot: bool


def refuse(*args: object) -> str | None:
    """Why the search on a GPU cannot take these inputs; None if it can."""
    for arg in args:
        if isinstance(arg, Tensor) and arg.dtype not in DTYPES:
            return f"{arg.dtype} is not supported"
    return _triton.refuse_device(*args)


def refuse_knn(queries: Tensor, keys: Tensor, k: int, *_: object) -> str | None:
    """The same for `knn`, whose lists of neighbors must fit into registers."""
    if k > MOST_NEIGHBORS:
        return f"finds at most {MOST_NEIGHBORS} neighbors, asked for {k}"
    return refuse(queries, keys)


def knn(
    queries: Tensor, keys: Tensor, k: int, exclude_self: bool, *, screens: Screens
) -> tuple[Tensor, Tensor]:
    """What `reference.knn` returns, by these screens."""
    with torch.cuda.device_of(keys):
        squared, index, _ = find(queries, keys, k, exclude_self, False, screens)
    return squared.sqrt().float(), index


def vocabulary_scores(
    candidates: Tensor, anchors: Tensor, largest: bool, *, screens: Screens
) -> Tensor:
    """What `reference.vocabulary_scores` returns, by these screens."""
    with torch.cuda.device_of(anchors):
        if not largest:
            return search_exact.dots(candidates, reference.mean_row(anchors))
        negated, *_ = find(candidates, anchors, 1, False, True, screens)
        return negated.squeeze(1).neg()


class Index:
    """Keys prepared for many searches by these screens."""

    def __init__(self, keys: Tensor, screens: Screens) -> None:
        self.keys = keys
        self._screens = screens
        with torch.cuda.device_of(keys):
            self._prepared = prepare(keys)

    def search(self, queries: Tensor, k: int, exclude_self: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Squared distances float64 and indices int64, [Q, k], smallest first; and bad rows.

        The last is on the device and 0 if all queries are finite.
        """
        if why := refuse_knn(queries, self.keys, k):
            raise NotImplementedError(f"SearchIndex: {why}")
        with torch.cuda.device_of(queries):
            return find_prepared(queries, self._prepared, k, exclude_self, self._screens)


def find(
    queries: Tensor, keys: Tensor, k: int, exclude_self: bool, dot: bool, screens: Screens
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances or negated dots [Q, k] float64 and keys [Q, k] int64, smallest first.

    The last is on the device and 0 if all queries are finite.
    """
    if len(queries) < FEW_QUERIES or not worth_a_screen(len(keys), k + exclude_self):
        return _scan_all(queries, keys, k, exclude_self, dot)
    return find_prepared(queries, prepare(keys, dot), k, exclude_self, screens)


def find_prepared(
    queries: Tensor, prepared: Prepared, k: int, exclude_self: bool, screens: Screens
) -> tuple[Tensor, Tensor, Tensor]:
    """The same among prepared keys."""
    n, wanted = len(queries), k + exclude_self
    if not n or not worth_a_screen(len(prepared.keys), wanted):
        return _scan_all(queries, prepared.keys, k, exclude_self, prepared.dot)
    cost, index = _outputs(queries, k)
    size = queries_for(len(prepared.keys), wanted)
    bad = []
    for start in range(0, n, size):
        part = slice(start, start + size)
        itself = start if exclude_self else NEVER
        bad.append(_screened(queries[part], prepared, k, itself, screens, cost[part], index[part]))
    return cost, index, bad[0] if len(bad) == 1 else torch.stack(bad).sum()


def prepare(keys: Tensor, dot: bool = False) -> Prepared:
    """Keys placed in their frame and rounded to fp16; beside them 2 D' + 24 bytes a key."""
    return Prepared(keys, placed(keys, frame_of(keys, dot), dot), dot)


def worth_a_screen(n_keys: int, wanted: int) -> bool:
    """Whether groups of keys are many enough to bound the neighbors wanted."""
    return n_keys >= 2 * GROUP * wanted


def every_for(n_keys: int, wanted: int) -> int:
    """One key in how many is sampled: enough groups for a bound, few enough found beyond it."""
    return max(1, min(SHARE, n_keys // (4 * GROUP * wanted), MOST_ENTRIES // (4 * wanted)))


def capacity_for(n_keys: int, wanted: int) -> int:
    """Entries in the list of a query: four times as many as the sample lets one expect."""
    room = 4 * every_for(n_keys, wanted) * wanted
    return search_exact.power_of_two(max(FEWEST_ENTRIES, min(MOST_ENTRIES, room)))


def queries_for(n_keys: int, wanted: int) -> int:
    """Queries of one launch: as many as the cache holds, and as their lists leave memory for."""
    listed = MOST_LISTED // capacity_for(n_keys, wanted)
    maxima = MOST_MAXIMA * GROUP * every_for(n_keys, wanted) // n_keys
    return max(1, min(MOST_QUERIES, listed, maxima))


def _screened(
    queries: Tensor,
    prepared: Prepared,
    k: int,
    itself: int,
    screens: Screens,
    cost: Tensor,
    index: Tensor,
) -> Tensor:
    keys, rows, dot = prepared
    there = placed(queries, frame_of_queries(queries, rows.frame), dot)
    trust = doubts(there, rows, dot)
    upper, lower, gap = search_rows.biases(rows.norms, trust.factors)
    wanted = k + (itself != NEVER)
    floor, rungs, rising = _floors(there.half, rows.half, lower, trust.query, wanted, screens)
    capacity = capacity_for(len(keys), wanted)
    ladder = Ladder(gap, rungs, rising, wanted)
    lists = screens.screen(there.half, rows.half, upper, floor, capacity, ladder)
    kept = _candidates(lists, trust, screens)
    search_exact.rerank(queries, keys, k, dot, itself, kept, cost, index)
    search_exact.scan(queries, keys, k, dot, itself, kept, cost, index)
    return there.bad


def _floors(
    q16: Tensor, k16: Tensor, lower: Tensor, doubt: Tensor, wanted: int, screens: Screens
) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernel's score of every neighbor wanted reaches, [Q] float32; rungs and floors.

    The best of different groups are different keys, so as many as are wanted score at least the
    last of them, less the doubt; the query itself may be one, and is counted in `wanted`.
    """
    every = every_for(len(k16), wanted)
    best = screens.group_max(q16, k16[::every], lower[::every].contiguous())
    return search_rows.floors(best.topk(wanted).values, doubt)


def _candidates(
    lists: tuple[Tensor, Tensor, Tensor], trust: Doubts, screens: Screens
) -> Candidates:
    count, first, score = lists
    place = torch.arange(score.shape[1], device=score.device)
    score, order = score.where(place < count[:, None], -torch.inf).sort(dim=1, descending=True)
    first = first.gather(1, order)
    return Candidates(count, first, score, screens.width, screens.step, trust.reach, trust.unit)


def _scan_all(
    queries: Tensor, keys: Tensor, k: int, exclude_self: bool, dot: bool
) -> tuple[Tensor, Tensor, Tensor]:
    cost, index = _outputs(queries, k)
    if len(queries):
        itself = 0 if exclude_self else NEVER
        search_exact.scan(queries, keys, k, dot, itself, None, cost, index)
    return cost, index, ~torch.isfinite(queries).all()


def _outputs(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape, device = (len(queries), k), queries.device
    cost = torch.empty(shape, dtype=torch.float64, device=device)
    return cost, torch.empty(shape, dtype=torch.int64, device=device)

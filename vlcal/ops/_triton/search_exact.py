"""Exact costs in float64: of the keys a screen could not rule out, or of all.

A cost is a squared distance or a negated dot product, added up in the order of
`reference.folded_sum`, so every launch switches the fusion of multiply and add off.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlcal.ops import _triton

# parts of the keys that are scanned apart from each other, and what they may keep in all
MOST_SLICES = 256
MOST_PARTIALS = 1 << 22


class Tiles(NamedTuple):
    """Queries a program answers, and keys it evaluates for each at once."""

    queries: int
    keys: int


# 16 keys of 32 lanes are 4 float64 sums a thread, 64 are 16: more would leave the registers. Keys
# that all queries look at are read once for four of them, unless four long lists of neighbors are
# too many.
MANY = 32
RERANK, OVERFLOW, SCAN = Tiles(1, 16), Tiles(1, 64), Tiles(4, 16)


class Candidates(NamedTuple):
    """What a screen kept of every query, and how far it can be trusted."""

    count: Tensor  # [Q] int32
    first: Tensor  # [Q, capacity] integer, best scores first
    score: Tensor  # [Q, capacity] float32, descending
    width: int
    step: int
    reach: Tensor  # [Q] float64: an entry matters while score >= reach - unit * (k-th best cost)
    unit: Tensor  # 0-d float64


def rerank(
    queries: Tensor,
    keys: Tensor,
    k: int,
    dot: bool,
    itself: int,
    candidates: Candidates,
    cost: Tensor,
    index: Tensor,
) -> None:
    """Writes the k best of the candidates to cost [Q, k] float64 and index [Q, k] int64.

    Queries whose list overflowed are left alone. Query q does not count key q + itself.
    """
    capacity = candidates.score.shape[1]
    tiles = tiles_for(RERANK, len(queries))
    _kernels().rerank_kernel[(-(-len(queries) // tiles.queries),)](
        queries,
        *queries.stride(),
        keys,
        *keys.stride(),
        keys.shape[1],
        candidates.count,
        candidates.first,
        candidates.score,
        capacity,
        candidates.reach,
        candidates.unit,
        cost,
        index,
        len(queries),
        len(keys),
        k,
        itself,
        candidates.step,
        DOT=dot,
        WIDTH=candidates.width,
        TOGETHER=max(1, tiles.keys // candidates.width),
        KP=power_of_two(k),
        Q=tiles.queries,
        UNROLL=unroll(keys.shape[1]),
        num_warps=4,
        enable_fp_fusion=False,
    )


def scan(
    queries: Tensor,
    keys: Tensor,
    k: int,
    dot: bool,
    itself: int,
    candidates: Candidates | None,
    cost: Tensor,
    index: Tensor,
) -> None:
    """Writes the k best of all keys for the queries whose list overflowed, or for all of them.

    How many wait is known on the device alone: programs that find nothing left to do end.
    """
    n, device = len(queries), queries.device
    if candidates is None:
        order = torch.arange(n, device=device)
        work = torch.full((), n, dtype=torch.int64, device=device)
    else:
        order, work = _overflowed(candidates)
    shared = candidates is None and n >= SCAN.queries and k <= MANY
    tiles = tiles_for(SCAN if shared else OVERFLOW, n)
    slices = max(1, min(MOST_SLICES, len(keys) // (4 * tiles.keys), MOST_PARTIALS // (n * k)))
    partial_cost = torch.empty(n * slices, k, dtype=torch.float64, device=device)
    partial_index = torch.empty(n * slices, k, dtype=torch.int64, device=device)
    places = power_of_two(k)
    items = -(-n // tiles.queries) * slices
    _kernels().scan_kernel[(min(items, 8 * processors(device)),)](
        queries,
        *queries.stride(),
        keys,
        *keys.stride(),
        keys.shape[1],
        order,
        work,
        partial_cost,
        partial_index,
        len(keys),
        k,
        itself,
        slices,
        DOT=dot,
        Q=tiles.queries,
        E=tiles.keys,
        KP=places,
        UNROLL=unroll(keys.shape[1]),
        num_warps=4,
        enable_fp_fusion=False,
    )
    together = tiles.queries if _triton.interpreted() else 1
    _kernels().merge_kernel[(-(-n // together),)](
        order,
        work,
        partial_cost,
        partial_index,
        cost,
        index,
        k,
        slices,
        Q=together,
        E=min(1024, power_of_two(slices * k)),
        KP=places,
        num_warps=4,
    )


def _overflowed(candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Queries whose list overflowed, in any order, in front of [Q] int64; how many, 0-d int64."""
    n = len(candidates.count)
    order = torch.empty(n, dtype=torch.int64, device=candidates.count.device)
    work = torch.zeros((), dtype=torch.int64, device=order.device)
    block = 1 << 13 if _triton.interpreted() else 128
    _kernels().overflow_kernel[(-(-n // block),)](
        candidates.count, order, work, n, candidates.score.shape[1], BLOCK=block, num_warps=4
    )
    return order, work


def dots(keys: Tensor, query: Tensor) -> Tensor:
    """Dot product [V] float64 of each key [V, D] with `query` [D] float64, contiguous."""
    out = torch.empty(len(keys), dtype=torch.float64, device=keys.device)
    tile = 1024 if _triton.interpreted() else OVERFLOW.keys
    _kernels().dots_kernel[(-(-len(keys) // tile),)](
        query,
        keys,
        *keys.stride(),
        keys.shape[1],
        out,
        len(keys),
        E=tile,
        UNROLL=unroll(keys.shape[1]),
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out


def tiles_for(compiled: Tiles, n_queries: int) -> Tiles:
    """The tiles of a kernel; a program of the interpreter costs the same whatever its size."""
    if not _triton.interpreted():
        return compiled
    together = min(128, power_of_two(n_queries))
    return Tiles(together, 8192 // together)


def unroll(dim: int) -> int:
    """Independent loads in flight: without them a program waits for one line at a time."""
    return 4 if dim >= 128 else 1


def power_of_two(n: int) -> int:
    """The least power of two that is not below n >= 1."""
    return 1 << (n - 1).bit_length()


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; a few for the interpreter."""
    if device.type == "cpu":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def _kernels() -> Any:
    return import_module("vlcal.ops._triton.search_exact_kernels")

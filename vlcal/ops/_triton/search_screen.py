"""The two screens of the exact search in Triton: fp16 products on tensor cores, no score stored.

Programs walk their tiles of queries x keys in one loop over all depths of all tiles, so that loads
for the next tile are on their way while the scores of this one are looked at. Groups are columns a
fixed step apart: in the layout of the accumulators those of a group belong to one thread, and their
maximum costs no exchange. The screen appends groups, not keys: a sixteenth of the comparisons and
of the atomics, for sixteen keys evaluated where one would do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlcal.ops import _triton
from vlcal.ops._triton.search import GROUP, Screens, processors


class Blocks(NamedTuple):
    """Launch parameters: a tile of queries x keys, the depth of one step, warps, stages."""

    queries: int
    keys: int
    depth: int
    warps: int
    stages: int
    width: int = 16


# Hopper: 128 x 256 is two warpgroups of wgmma 64 x 256, 128 accumulators a thread; four stages of
# 48 KiB leave room for nothing else on a multiprocessor and cover the reading of a tile's scores.
# Ampere: 128 x 128 with 4 warps is 128 accumulators a thread again; four stages of 16 KiB fit the
# 99 KiB of the consumer chips, and two programs share a multiprocessor of the large ones.
# Few queries: half the rows, or most of a tile would be padding.
HOPPER = Blocks(queries=128, keys=256, depth=64, warps=8, stages=4)
HOPPER_FEW = Blocks(queries=64, keys=256, depth=64, warps=4, stages=4)
AMPERE = Blocks(queries=128, keys=128, depth=32, warps=4, stages=4)
AMPERE_FEW = Blocks(queries=64, keys=128, depth=32, warps=4, stages=4)
# a program of the interpreter costs about the same whatever its size
INTERPRETED = Blocks(queries=64, keys=256, depth=64, warps=4, stages=1)


@triton.jit
def screen_kernel(
    q_ptr,
    k_ptr,
    bias_ptr,
    floor_ptr,
    count_ptr,
    first_ptr,
    score_ptr,
    n_queries,
    n_keys,
    every,
    capacity,
    groups,
    DEPTH: tl.constexpr,
    APPEND: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    STEPS: tl.constexpr = DEPTH // BLOCK_D
    STEP: tl.constexpr = BLOCK_K // WIDTH
    query_tiles = tl.cdiv(n_queries, BLOCK_Q)
    tiles = query_tiles * tl.cdiv(n_keys, BLOCK_K)
    mine = tl.cdiv(tiles - tl.program_id(0), tl.num_programs(0))
    depth = tl.arange(0, BLOCK_D)
    scores = tl.zeros([BLOCK_Q, BLOCK_K], dtype=tl.float32)
    tile = tl.program_id(0)
    q_at = (tile % query_tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q).to(tl.int64)
    k_at = (tile // query_tiles).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    for number in range(0, mine * STEPS):
        step = number % STEPS
        # rows behind the last are the last again: loads need no mask, their scores are dropped
        q_row = tl.minimum(q_at, n_queries - 1)
        k_row = tl.minimum(k_at, n_keys - 1)
        d = step * BLOCK_D + depth
        q = tl.load(q_ptr + q_row[:, None] * DEPTH + d[None, :])
        k = tl.load(k_ptr + k_row[None, :] * (every * DEPTH) + d[:, None])
        scores = tl.dot(q, k, scores)
        if step == STEPS - 1:
            bias = tl.load(bias_ptr + k_at, mask=k_at < n_keys, other=float("-inf"))
            scores += bias[None, :]
            best = tl.max(tl.reshape(scores, [BLOCK_Q, WIDTH, STEP]), axis=1)
            group = (tile // query_tiles).to(tl.int64) * STEP + tl.arange(0, STEP)
            first = (tile // query_tiles).to(tl.int64) * BLOCK_K + tl.arange(0, STEP)
            real = (q_at < n_queries)[:, None]
            if APPEND:
                floor = tl.load(floor_ptr + q_at, mask=q_at < n_queries, other=float("inf"))
                found = (best >= floor[:, None]) & (first < n_keys)[None, :] & real
                one = tl.full([BLOCK_Q, STEP], 1, tl.int32)
                count_at = count_ptr + q_at[:, None] + tl.zeros([1, STEP], tl.int64)
                place = tl.atomic_add(count_at, one, mask=found, sem="relaxed")
                kept = found & (place < capacity)
                out = q_at[:, None] * capacity + place
                tl.store(score_ptr + out, best, mask=kept)
                key = first[None, :] + tl.zeros([BLOCK_Q, 1], tl.int64)
                tl.store(first_ptr + out, key, mask=kept)
            else:
                tl.store(score_ptr + q_at[:, None] * groups + group[None, :], best, mask=real)
            scores = tl.zeros([BLOCK_Q, BLOCK_K], dtype=tl.float32)
            tile += tl.num_programs(0)
            q_at = (tile % query_tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q).to(tl.int64)
            k_at = (tile // query_tiles).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)


def blocks_for(capability: tuple[int, int], n_queries: int) -> Blocks:
    """Tiles for a GPU and a number of queries."""
    if _triton.interpreted():
        return INTERPRETED
    if capability[0] == 9:
        return HOPPER if n_queries > 64 else HOPPER_FEW
    return AMPERE if n_queries > 64 else AMPERE_FEW


def group_max(q16: Tensor, k16: Tensor, bias: Tensor) -> Tensor:
    """The largest score of each group of keys [Q, G] float32; see `search.Screens`."""
    blocks = blocks_for(_capability(q16.device), len(q16))
    tiles = triton.cdiv(len(k16), blocks.keys)
    width = min(GROUP, blocks.keys)
    groups = tiles * (blocks.keys // width)
    best = torch.empty(len(q16), groups, dtype=torch.float32, device=q16.device)
    _launch(blocks, q16, k16, bias, bias, best, best, best, 0, groups, width, append=False)
    return best


def screen(
    q16: Tensor, k16: Tensor, bias: Tensor, floor: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of keys that reach the floor: count, first key, score; see `search.Screens`."""
    blocks = blocks_for(_capability(q16.device), len(q16))
    count = torch.zeros(len(q16), dtype=torch.int32, device=q16.device)
    wide = torch.int64 if len(k16) >= 2**31 else torch.int32
    first = torch.empty(len(q16), capacity, dtype=wide, device=q16.device)
    score = torch.empty(len(q16), capacity, dtype=torch.float32, device=q16.device)
    lists = (count, first, score)
    _launch(blocks, q16, k16, bias, floor, *lists, capacity, 0, blocks.width, append=True)
    return count, first, score


def screens(device: torch.device) -> Screens:
    """The pair for a device, with the shape of its groups."""
    blocks = blocks_for(_capability(device), 128)
    return Screens(group_max, screen, blocks.width, blocks.keys // blocks.width)


def _launch(
    blocks: Blocks,
    q16: Tensor,
    k16: Tensor,
    bias: Tensor,
    floor: Tensor,
    count: Tensor,
    first: Tensor,
    score: Tensor,
    capacity: int,
    groups: int,
    width: int,
    append: bool,
) -> None:
    depth = q16.shape[1]
    tiles = triton.cdiv(len(q16), blocks.queries) * triton.cdiv(len(k16), blocks.keys)
    # one program fills a multiprocessor of Hopper, two or three one of Ampere
    programs = min(tiles, (1 if blocks.keys == 256 else 3) * processors(q16.device))
    screen_kernel[(programs,)](
        q16,
        k16,
        bias,
        floor,
        count,
        first,
        score,
        len(q16),
        len(k16),
        k16.stride(0) // depth,
        capacity,
        groups,
        DEPTH=depth,
        APPEND=append,
        WIDTH=width,
        BLOCK_Q=blocks.queries,
        BLOCK_K=blocks.keys,
        BLOCK_D=blocks.depth,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return (0, 0) if device.type == "cpu" else torch.cuda.get_device_capability(device)

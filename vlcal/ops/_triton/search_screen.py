"""The two screens of the exact search in Triton: fp16 products on tensor cores, no score stored.

Programs walk their tiles of queries x keys in one loop over all depths of all tiles, so that loads
for the next tile are on their way while the scores of this one are looked at. Groups are columns a
fixed step apart: in the layout of the accumulators those of a group belong to one thread, and their
maximum costs no exchange. The screen appends groups, not keys: a sixteenth of the comparisons and
of the atomics, for sixteen keys evaluated where one would do.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlcal.ops import _triton
from vlcal.ops._triton.search import GROUP, Ladder, Screens
from vlcal.ops._triton.search_exact import processors


class Blocks(NamedTuple):
    """A tile of queries x keys, the depth of one step, and the stages of loads under way."""

    queries: int
    keys: int
    depth: int
    stages: int


# 128 x 256 is two warpgroups of wgmma 64 x 256 on Hopper, 128 accumulators a thread; four stages of
# 48 KiB leave room for nothing else on a multiprocessor and cover the reading of a tile's scores.
COMPILED = Blocks(queries=128, keys=256, depth=64, stages=4)
# a program of the interpreter costs about the same whatever its size
INTERPRETED = Blocks(queries=64, keys=256, depth=64, stages=1)
WIDTH = 16  # keys of an entry of the screen


def group_max(q16: Tensor, k16: Tensor, bias: Tensor) -> Tensor:
    """The largest score of each group of keys [Q, G] float32; see `search.Screens`."""
    blocks = _blocks(q16.device)
    tiles = -(-len(k16) // blocks.keys)
    width = min(GROUP, blocks.keys)
    groups = tiles * (blocks.keys // width)
    best = torch.empty(len(q16), groups, dtype=torch.float32, device=q16.device)
    _launch(blocks, q16, k16, bias, bias, best, best, best, 0, groups, width, append=False)
    return best


def screen(
    q16: Tensor, k16: Tensor, bias: Tensor, floor: Tensor, capacity: int, _: Ladder
) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of keys that reach the floor: count, first key, score; see `search.Screens`."""
    blocks = _blocks(q16.device)
    count = torch.zeros(len(q16), dtype=torch.int32, device=q16.device)
    wide = torch.int64 if len(k16) >= 2**31 else torch.int32
    first = torch.empty(len(q16), capacity, dtype=wide, device=q16.device)
    score = torch.empty(len(q16), capacity, dtype=torch.float32, device=q16.device)
    lists = (count, first, score)
    _launch(blocks, q16, k16, bias, floor, *lists, capacity, 0, WIDTH, append=True)
    return count, first, score


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
    kernels: Any = import_module("vlcal.ops._triton.search_kernels")
    depth = q16.shape[1]
    tiles = -(-len(q16) // blocks.queries) * -(-len(k16) // blocks.keys)
    # what a multiprocessor's registers hold at once: programs share the work evenly, so one that
    # had to wait for another to end would double the time
    programs = min(tiles, processors(q16.device))
    kernels.screen_kernel[(programs,)](
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
        num_warps=8,
        num_stages=blocks.stages,
    )


def _blocks(device: torch.device) -> Blocks:
    if _triton.interpreted():
        return INTERPRETED
    size = 2 * COMPILED.depth * (COMPILED.queries + COMPILED.keys)
    return COMPILED._replace(stages=_triton.stages(device, COMPILED.stages, size))


SCREENS = Screens(group_max, screen, WIDTH, COMPILED.keys // WIDTH)

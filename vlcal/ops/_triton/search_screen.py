"""The two screens of the exact search in Triton: fp16 products on tensor cores, no score stored.

Programs walk their tiles of queries x keys in one loop over all depths of all tiles, so that loads
for the next tile are on their way while the scores of this one are looked at. Groups are columns a
fixed step apart: in the layout of the accumulators those of a group belong to one thread, and their
maximum costs no exchange. The screen appends groups, not keys: a sixteenth of the comparisons and
of the atomics, for sixteen keys evaluated where one would do.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlcal.ops import _triton
from vlcal.ops._triton.search import GROUP, Screens
from vlcal.ops._triton.search_exact import processors


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
# Few queries: half the rows, or most of a tile would be padding. Triton before 3.3 regroups scores
# by way of shared memory, which Hopper's tiles leave no room for: there Ampere's must do.
FEW = 64
HOPPER = Blocks(queries=128, keys=256, depth=64, warps=8, stages=4)
HOPPER_FEW = Blocks(queries=64, keys=256, depth=64, warps=4, stages=4)
AMPERE = Blocks(queries=128, keys=128, depth=32, warps=4, stages=4)
AMPERE_FEW = Blocks(queries=64, keys=128, depth=32, warps=4, stages=4)
# a program of the interpreter costs about the same whatever its size
INTERPRETED = Blocks(queries=64, keys=256, depth=64, warps=4, stages=1)


def blocks_for(capability: tuple[int, int], few: bool, regrouping: bool) -> Blocks:
    """Tiles for a GPU, for few queries or many, and if scores are moved to regroup them."""
    if capability[0] == 9 and not regrouping:
        return HOPPER_FEW if few else HOPPER
    return AMPERE_FEW if few else AMPERE


def group_max(q16: Tensor, k16: Tensor, bias: Tensor) -> Tensor:
    """The largest score of each group of keys [Q, G] float32; see `search.Screens`."""
    blocks = _blocks(q16.device, len(q16) <= FEW)
    tiles = -(-len(k16) // blocks.keys)
    width = min(GROUP, blocks.keys)
    groups = tiles * (blocks.keys // width)
    best = torch.empty(len(q16), groups, dtype=torch.float32, device=q16.device)
    _launch(blocks, q16, k16, bias, bias, best, best, best, 0, groups, width, append=False)
    return best


def screen(
    q16: Tensor, k16: Tensor, bias: Tensor, floor: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of keys that reach the floor: count, first key, score; see `search.Screens`."""
    blocks = _blocks(q16.device, len(q16) <= FEW)
    count = torch.zeros(len(q16), dtype=torch.int32, device=q16.device)
    wide = torch.int64 if len(k16) >= 2**31 else torch.int32
    first = torch.empty(len(q16), capacity, dtype=wide, device=q16.device)
    score = torch.empty(len(q16), capacity, dtype=torch.float32, device=q16.device)
    lists = (count, first, score)
    _launch(blocks, q16, k16, bias, floor, *lists, capacity, 0, blocks.width, append=True)
    return count, first, score


def screens(device: torch.device) -> Screens:
    """The pair for a device, with the shape of its groups."""
    blocks = _blocks(device, True)
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
    kernels: Any = import_module("vlcal.ops._triton.search_kernels")
    depth = q16.shape[1]
    tiles = -(-len(q16) // blocks.queries) * -(-len(k16) // blocks.keys)
    # what a multiprocessor's registers hold at once: programs share the work evenly, so one that
    # had to wait for another to end would double the time
    programs = min(tiles, (1 if blocks.keys == 256 else 2) * processors(q16.device))
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
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )


@lru_cache
def _blocks(device: torch.device, few: bool) -> Blocks:
    if _triton.interpreted():
        return INTERPRETED
    return blocks_for(torch.cuda.get_device_capability(device), few, regroups())


def regroups() -> bool:
    """Whether this version of Triton moves scores through shared memory to regroup them."""
    from triton import __version__ as version

    return tuple(map(int, version.split(".")[:2])) < (3, 3)

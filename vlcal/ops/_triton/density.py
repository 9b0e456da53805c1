"""Launcher of the Gaussian sums; nothing here waits for the device."""

from __future__ import annotations

from functools import reduce
from importlib import import_module
from math import tau
from typing import Any

import torch
from torch import Tensor

from vlcal.ops import _triton

POINTS = 64  # of one step
STEPS = 16  # whose terms float32 adds up
SLICES = 16  # at most: few queries still fill a device, and the partial sums stay small
SHORTEST = 4096  # points of a slice at least


def kernel_density(queries: Tensor, points: Tensor, bandwidth: Tensor) -> Tensor:
    """Densities [N] float32 of queries [N, 2] under points [M, 2], any strides; bandwidth float64.

    The partial sums take 16 N float64 at most.
    """
    n, m = len(queries), len(points)
    # a step of the interpreter costs about the same whatever its size
    step, steps = (4096, 1) if _triton.interpreted() else (POINTS, STEPS)
    block = 64  # queries of a program
    size = slice_size(m, step * steps)
    sums = torch.empty(-(-m // size), n, dtype=torch.float64, device=queries.device)
    if n:
        kernels: Any = import_module("vlcal.ops._triton.density_kernels")
        with torch.cuda.device_of(queries):
            kernels.gaussian_sums[(-(-n // block), len(sums))](
                queries,
                points,
                bandwidth,
                sums,
                n,
                m,
                size,
                *queries.stride(),
                *points.stride(),
                QUERIES=block,
                POINTS=step,
                STEPS=steps,
                num_warps=4,
            )
    # one after the other: an order that does not depend on n
    total = reduce(torch.add, sums.unbind(0))
    return (total / (m * tau * bandwidth.prod())).float()


def slice_size(m: int, step: int = POINTS * STEPS) -> int:
    """Points of a slice: whole steps; of `m` alone, so that a density is the same in any batch."""
    return max(SHORTEST, -(-m // (SLICES * step)) * step)

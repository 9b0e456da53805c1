"""Rows made ready for the screen: centered, scaled, rounded to fp16, with what the rounding lost.

One pass over the rows in float64, a few rows a program; then, once a search, the doubts and the
two biases of every key (see `search_bounds`). None of the kernels has much to do: what they save is
the time between many smaller ones.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from vlcal.ops import _triton

GAP_KEYS = 256  # kGapKeys of csrc/cuda/search_layout.cuh


def scale(largest: Tensor, most: Tensor | None) -> Tensor:
    """A power of two, 0-d float64, that takes a coordinate as large as this to about 2^11.

    Args:
        largest: 0-d float64.
        most: 0-d float64 that the scale does not exceed, or none.
    """
    found = torch.empty_like(largest)
    limit = largest if most is None else most
    _kernels().scale_kernel[(1,)](largest, limit, found, LIMITED=most is not None, num_warps=1)
    return found


def place(
    rows: Tensor, center: Tensor, scale: Tensor, padded: int, dot: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x = scale (row - center): fp16 [n, padded], float64 [3, n] of its norms, and bad rows.

    The norms are |x|, |x - fp16|, and -|x|^2/2 or x.center. How many rows hold NaN or infinity is
    [1] int32; their norms mean nothing.

    Args:
        rows: [n, D] floating point, any strides.
        center: [D] float64.
        scale: 0-d float64, the factor of the center in x.center too.
        padded: width of the result, a multiple of 64, zeros behind D.
        dot: whether the last is scale x.center.
    """
    n, dim = rows.shape
    half = torch.empty(n, padded, dtype=torch.float16, device=rows.device)
    norms = torch.empty(3, n, dtype=torch.float64, device=rows.device)
    bad = torch.zeros(1, dtype=torch.int32, device=rows.device)
    # eight values a thread; a program of the interpreter costs the same whatever its size
    block_n = 1024 if _triton.interpreted() else 8
    block_d = 128 if padded % 128 == 0 else 64
    if n:
        _kernels().place_kernel[(-(-n // block_n),)](
            rows,
            rows.stride(0),
            rows.stride(1),
            center,
            scale,
            half,
            *norms,
            bad,
            n,
            dim,
            PADDED=padded,
            DOT=dot,
            BLOCK_N=block_n,
            BLOCK_D=block_d,
            num_warps=4,
        )
    return half, norms, bad


def doubts(queries: Any, keys: Any, dim: int, dot: bool) -> tuple[Tensor, Tensor]:
    """Per query [3, Q] float64 its doubt, base and reach; [6] the factors of the keys and the unit.

    Args:
        queries: the `search_bounds.Rows` of the queries.
        keys: those of the keys.
        dim: products added up for a score.
        dot: whether scores are dot products.
    """
    n = queries.norms.shape[1]
    found = torch.empty_like(queries.norms)
    factors = found.new_empty(6)
    block = 1 << 16 if _triton.interpreted() else 128
    _kernels().doubt_kernel[(-(-n // block),)](
        queries.norms,
        queries.typical,
        queries.typical.stride(0),
        queries.frame.scale,
        keys.typical,
        keys.typical.stride(0),
        keys.frame.scale,
        keys.frame.offset,
        found,
        factors,
        n,
        dim,
        DOT=dot,
        BLOCK=block,
        num_warps=4,
    )
    return found, factors


def rungs_for(wanted: int) -> int:
    """Rungs of a ladder: at a half, a quarter and an eighth of the witnesses wanted."""
    return min(3, wanted.bit_length() - 1)


def floors(best: Tensor, doubt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What no score of a neighbor is below: float32 [Q], and what it can rise to.

    The first is the last of the witnesses, doubted twice. Rungs [Q, R] are what witnesses at lower
    ranks score, ascending; rising floors [Q, R] are the same doubted twice, for the moment when
    as many keys as there are witnesses have been seen to reach the rung.

    Args:
        best: [Q, wanted] float32, contiguous, descending: scores that as many keys have, but for
            the doubt.
        doubt: [Q] float64.
    """
    n, wanted = best.shape
    floor = torch.empty(n, dtype=torch.float32, device=best.device)
    rungs = torch.empty(n, rungs_for(wanted), dtype=torch.float32, device=best.device)
    rising = torch.empty_like(rungs)
    block = 1 << 16 if _triton.interpreted() else 128
    _kernels().floor_kernel[(-(-n // block),)](
        best,
        doubt,
        floor,
        rungs,
        rising,
        n,
        wanted,
        RUNGS=rungs.shape[1],
        BLOCK=block,
        num_warps=4,
    )
    return floor, rungs, rising


def biases(norms: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Upper and lower bias [V] float32 of each key: lift x ratio, plus and minus its doubt.

    And the largest difference of the two among each GAP_KEYS consecutive keys, float32.

    Args:
        norms: [3, V] float64, as `place` returns them.
        factors: [5] float64: the ratio; what (length + residual)^2, residual^2 and
            (length + offset)^2 count in the doubt; and the offset.
    """
    n = norms.shape[1]
    upper = torch.empty(n, dtype=torch.float32, device=norms.device)
    lower = torch.empty_like(upper)
    gap = upper.new_empty(-(-n // GAP_KEYS))
    block = 1 << 16 if _triton.interpreted() else 1024
    _kernels().bias_kernel[(-(-n // block),)](
        *norms, factors, upper, lower, gap, n, GAP_KEYS=GAP_KEYS, BLOCK=block, num_warps=4
    )
    return upper, lower, gap


def _kernels() -> Any:
    return import_module("vlcal.ops._triton.search_kernels")

"""Rows made ready for the screen: centered, scaled, rounded to fp16, with what the rounding lost.

One pass over the rows in float64, a few rows a program; then, once a search, the two biases of
every key (see `search_bounds`). Both kernels wait for memory, not for arithmetic.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from vlcal.ops import _triton


def place(
    rows: Tensor, center: Tensor, scale: Tensor, padded: int, dot: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of x = scale (row - center): fp16 [n, padded], |x|, |x - fp16|, and -|x|^2/2 or x.center.

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
            n,
            dim,
            PADDED=padded,
            DOT=dot,
            BLOCK_N=block_n,
            BLOCK_D=block_d,
            num_warps=4,
        )
    length, residual, lift = norms
    return half, length, residual, lift


def biases(
    length: Tensor, residual: Tensor, lift: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor]:
    """Upper and lower bias [V] float32 of each key: lift x ratio, plus and minus its doubt.

    Args:
        length: [V] float64.
        residual: [V] float64.
        lift: [V] float64, as `place` returns them.
        factors: [5] float64: the ratio; what (length + residual)^2, residual^2 and
            (length + offset)^2 count in the doubt; and the offset.
    """
    upper = torch.empty(len(length), dtype=torch.float32, device=length.device)
    lower = torch.empty_like(upper)
    block = 1 << 16 if _triton.interpreted() else 1024
    _kernels().bias_kernel[(-(-len(length) // block),)](
        length, residual, lift, factors, upper, lower, len(length), BLOCK=block, num_warps=4
    )
    return upper, lower


def _kernels() -> Any:
    return import_module("vlcal.ops._triton.search_kernels")

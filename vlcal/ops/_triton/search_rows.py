"""Rows made ready for the screen: centered, scaled, rounded to fp16, with what the rounding lost.

One pass over the rows in float64, a few rows a program; then, once a search, the two biases of
every key (see `search_bounds`). Both kernels wait for memory, not for arithmetic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlcal.ops import _triton

LARGEST_HALF = tl.constexpr(65504.0)
LARGEST_FLOAT = tl.constexpr(1e37)


@triton.jit
def place_kernel(
    rows_ptr,
    stride_n,
    stride_d,
    center_ptr,
    scale_ptr,
    half_ptr,
    length_ptr,
    residual_ptr,
    lift_ptr,
    n,
    dim,
    PADDED: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    real = row < n
    scale = tl.load(scale_ptr)
    length = tl.zeros([BLOCK_N], dtype=tl.float64)
    residual = tl.zeros([BLOCK_N], dtype=tl.float64)
    lift = tl.zeros([BLOCK_N], dtype=tl.float64)
    for start in range(0, PADDED, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = real[:, None] & (d < dim)[None, :]
        at = row[:, None] * stride_n + d.to(tl.int64)[None, :] * stride_d
        # half precisions are widened by way of float32, which every version can do
        value = tl.load(rows_ptr + at, mask=inside, other=0.0)
        if value.dtype != tl.float64:
            value = value.to(tl.float32).to(tl.float64)
        center = tl.load(center_ptr + d, mask=d < dim, other=0.0)
        x = (value - center[None, :]) * scale
        x = tl.where(inside, x, 0.0)
        # what fp16 cannot hold is residual
        half = tl.minimum(tl.maximum(x, -LARGEST_HALF), LARGEST_HALF).to(tl.float16)
        tl.store(half_ptr + row[:, None] * PADDED + d[None, :], half, mask=real[:, None])
        lost = x - half.to(tl.float64)
        length += tl.sum(x * x, axis=1)
        residual += tl.sum(lost * lost, axis=1)
        if DOT:
            lift += tl.sum(x * (center * scale)[None, :], axis=1)
        else:
            lift -= 0.5 * tl.sum(x * x, axis=1)
    tl.store(length_ptr + row, tl.sqrt(length), mask=real)
    tl.store(residual_ptr + row, tl.sqrt(residual), mask=real)
    tl.store(lift_ptr + row, lift, mask=real)


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
        place_kernel[(triton.cdiv(n, block_n),)](
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


@triton.jit
def bias_kernel(
    length_ptr,
    residual_ptr,
    lift_ptr,
    factors_ptr,
    upper_ptr,
    lower_ptr,
    n,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = row < n
    length = tl.load(length_ptr + row, mask=real, other=0.0)
    residual = tl.load(residual_ptr + row, mask=real, other=0.0)
    lift = tl.load(lift_ptr + row, mask=real, other=0.0) * tl.load(factors_ptr)
    span = length + residual
    far = length + tl.load(factors_ptr + 4)
    doubt = span * span * tl.load(factors_ptr + 1) + residual * residual * tl.load(factors_ptr + 2)
    doubt += far * far * tl.load(factors_ptr + 3) + tl.abs(lift) * 2.0**-22
    doubt *= 1 + 2.0**-20
    # float32 rounds by less than the share added here; the constant is for what it flushes to zero
    upper = lift + doubt
    upper += tl.abs(upper) * 2.0**-23 + 1e-30
    lower = lift - doubt
    lower -= tl.abs(lower) * 2.0**-23 + 1e-30
    # a key about which nothing is known is always a candidate and never a witness
    known = (doubt < LARGEST_FLOAT) & (tl.abs(lift) < LARGEST_FLOAT)
    upper = tl.where(known, upper, float("inf"))
    lower = tl.where(known, lower, float("-inf"))
    tl.store(upper_ptr + row, upper.to(tl.float32), mask=real)
    tl.store(lower_ptr + row, lower.to(tl.float32), mask=real)


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
    bias_kernel[(triton.cdiv(len(length), block),)](
        length, residual, lift, factors, upper, lower, len(length), BLOCK=block, num_warps=4
    )
    return upper, lower

"""Losses and gradients of the cross-entropy, one wave of images at a time.

The gradient of a wave's logits is kept as two float16 that add up to 22 bits; products with it are
sums of three products, each tile by one program in one order: no atomics, no locks.
"""

import triton
import triton.language as tl

from vlcal.ops._triton.logits_kernels import scores


@triton.jit
def losses(
    partial,
    scale_ptr,
    loss,
    top_ptr,
    inverse_sum,
    n,
    n_rows,
    size,
    segments,
    BLOCK_N: tl.constexpr,
):
    """Merge the segments of `walk` in order: loss [n], and maximum and 1 / sum [n_rows].

    Rows beyond n get a sum without inverse, 0, and so a gradient of 0.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    good = rows < n
    scale = tl.load(scale_ptr)
    top = tl.full([BLOCK_N], float("-inf"), tl.float32)
    own = tl.full([BLOCK_N], float("-inf"), tl.float32)
    at = partial + rows
    for _ in range(segments):
        top = tl.maximum(top, tl.load(at))
        own = tl.maximum(own, tl.load(at + 2 * size))
        at += n_rows
    total = tl.zeros([BLOCK_N], tl.float64)
    at = partial + rows
    for _ in range(segments):
        shift = (tl.load(at).to(tl.float64) - top) * scale
        total += tl.load(at + size).to(tl.float64) * tl.exp(tl.maximum(shift, -200.0))
        at += n_rows
    value = tl.log(total) - (own.to(tl.float64) - top) * scale
    tl.store(loss + rows, value.to(tl.float32), mask=good)
    tl.store(top_ptr + rows, top)
    tl.store(inverse_sum + rows, tl.where(good, 1.0 / total, 0.0).to(tl.float32))


@triton.jit
def logit_gradients(
    x_hi,
    x_lo,
    t_hi,
    t_lo,
    inverse_ptr,
    unscale_ptr,
    bias,
    factor_ptr,
    labels_ptr,
    top_ptr,
    inverse_sum,
    z_hi,
    z_lo,
    slope,
    n_rows,
    n_classes,
    depth,
    tiles,
    tiles_per_segment,
    TERMS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """With z = p - [class is label]: 2^14 z as hi + lo; slope [segments, n_rows] = sum of z score.

    The slope takes scores below the maximum, as z adds up to nothing over the classes.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    segment = tl.program_id(1)
    inverse = tl.load(inverse_ptr + rows) * tl.load(unscale_ptr)
    factor = tl.load(factor_ptr + rows)
    labels = tl.load(labels_ptr + rows)
    top = tl.load(top_ptr + rows)
    share = tl.load(inverse_sum + rows)
    total = tl.zeros([BLOCK_N], tl.float32)
    first = segment * tiles_per_segment
    for tile in range(first, tl.minimum(first + tiles_per_segment, tiles)):
        cols = tile * BLOCK_C + tl.arange(0, BLOCK_C)
        dots = scores(
            x_hi, x_lo, t_hi, t_lo, inverse, bias, rows, cols, n_classes, depth,
            TERMS, BLOCK_N, BLOCK_C, BLOCK_D,
        )  # fmt: skip
        inside = (cols < n_classes)[None, :]
        below = tl.where(inside, dots - top[:, None], 0.0)
        prob = tl.exp2(tl.maximum(below * factor[:, None], -200.0)) * share[:, None]
        prob = tl.where(inside, prob, 0.0)
        z = prob - tl.where(cols[None, :] == labels[:, None], 1.0, 0.0)
        total += tl.sum(z * below, axis=1)
        z *= 16384.0
        at = rows.to(tl.int64)[:, None] * tiles * BLOCK_C + cols[None, :]
        high = z.to(tl.float16)
        tl.store(z_hi + at, high)
        if TERMS == 3:
            tl.store(z_lo + at, (z - high.to(tl.float32)).to(tl.float16))
    tl.store(slope + segment.to(tl.int64) * n_rows + rows, total)


@triton.jit
def multiply(
    a_hi,
    a_lo,
    b_hi,
    b_lo,
    out,
    n_rows,
    pitch,
    depth,
    length,
    steps,
    TRANSPOSED: tl.constexpr,
    TERMS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add A [n_rows, length] times B [length, depth] to out [splits, n_rows, depth].

    Each split adds up `steps` blocks of the length. TRANSPOSED: A is stored [length, n_rows].
    """
    wide = depth // BLOCK_D
    rows = (tl.program_id(0) // wide).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = (tl.program_id(0) % wide) * BLOCK_D + tl.arange(0, BLOCK_D)
    split = tl.program_id(1)
    step = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    first = split * steps * BLOCK_K
    for start in range(first, tl.minimum(first + steps * BLOCK_K, length), BLOCK_K):
        k = (start + step).to(tl.int64)
        if TRANSPOSED:
            a_at = k[None, :] * pitch + rows[:, None]
        else:
            a_at = rows[:, None] * pitch + k[None, :]
        b_at = k[:, None] * depth + cols[None, :]
        a = tl.load(a_hi + a_at)
        b = tl.load(b_hi + b_at)
        if TERMS == 1:
            total = tl.dot(a, b, total)
        else:
            # short sums in the tensor cores, the long one outside, as in `products`
            part = tl.dot(tl.load(a_lo + a_at), b)
            part = tl.dot(a, tl.load(b_lo + b_at), part)
            part = tl.dot(a, b, part)
            total += part
    at = (split.to(tl.int64) * n_rows + rows)[:, None] * depth + cols[None, :]
    tl.store(out + at, tl.load(out + at) + total)

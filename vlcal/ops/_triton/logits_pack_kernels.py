"""Features as centred half precision numbers that add up to 22 bits, with what rounding took.

A value is split as hi + lo, both float16 after a scaling by a power of two that puts the largest
near 2^13: products of the parts are exact in tensor cores, and lo stays clear of subnormals.
"""

# triton tells the types of constants apart by annotations that are objects, not strings
import triton
import triton.language as tl


@triton.jit
def load_rows(source, row, inside, col, dim, stride_n, stride_d):
    """Values [ROWS, BLOCK_D] in float64, zero outside."""
    good = inside[:, None] & (col < dim)[None, :]
    at = row[:, None] * stride_n + col.to(tl.int64)[None, :] * stride_d
    return tl.load(source + at, mask=good, other=0.0).to(tl.float32).to(tl.float64)


@triton.jit
def _centered(value, center, inside, col, dim):
    """Value - center, zero outside."""
    mean = tl.load(center + col, mask=col < dim, other=0.0)
    return tl.where(inside[:, None] & (col < dim)[None, :], value - mean[None, :], 0.0)


@triton.jit
def _store_split(value, hi, lo, at, SPLIT: tl.constexpr):
    """Store the parts of scaled values; give what they add up to and the small part."""
    # by way of float32: what the double rounding loses is in `lo`
    high = value.to(tl.float32).to(tl.float16)
    tl.store(hi + at, high)
    kept = high.to(tl.float32).to(tl.float64)
    small = tl.zeros_like(value)
    if SPLIT:
        low = (value - kept).to(tl.float32).to(tl.float16)
        tl.store(lo + at, low)
        small = low.to(tl.float32).to(tl.float64)
    return kept + small, small


@triton.jit
def _power_of_two(largest):
    """The scale that brings `largest` (float32) into [2^13, 2^14), and its inverse."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    exponent = tl.minimum(tl.maximum(267 - exponent, 1), 253)
    scale = (exponent << 23).to(tl.float32, bitcast=True)
    return scale.to(tl.float64), ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def pack_classes(
    source,
    center,
    vector,
    weight,
    scale_ptr,
    hi,
    lo,
    sizes,
    along,
    n,
    n_rows,
    dim,
    depth,
    stride_n,
    stride_d,
    CENTERED: tl.constexpr,
    ALONG: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows under one scale: sizes [3, n_rows] = |v|, |v - packed|, |lo|; along = row . vector."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    scale = tl.load(scale_ptr)
    norm = tl.zeros([ROWS], tl.float64)
    rest = tl.zeros([ROWS], tl.float64)
    small = tl.zeros([ROWS], tl.float64)
    dot = tl.zeros([ROWS], tl.float64)
    for start in range(0, depth, BLOCK_D):
        col = start + tl.arange(0, BLOCK_D)
        value = load_rows(source, row, inside, col, dim, stride_n, stride_d)
        if ALONG:
            dot += tl.sum(value * tl.load(vector + col, mask=col < dim, other=0.0)[None, :], 1)
        if CENTERED:
            value = _centered(value, center, inside, col, dim)
        if WEIGHTED:
            value = value * tl.load(weight + row, mask=inside, other=0.0)[:, None]
        scaled = value * scale
        packed, low = _store_split(scaled, hi, lo, row[:, None] * depth + col[None, :], SPLIT)
        norm += tl.sum(value * value, 1)
        rest += tl.sum((scaled - packed) * (scaled - packed), 1)
        small += tl.sum(low * low, 1)
    tl.store(sizes + row, tl.sqrt(norm))
    tl.store(sizes + n_rows + row, tl.sqrt(rest) / scale)
    tl.store(sizes + 2 * n_rows + row, tl.sqrt(small) / scale)
    if ALONG:
        tl.store(along + row, dot)


@triton.jit
def pack_images(
    source,
    center,
    class_center,
    limits,
    hi,
    lo,
    inverse,
    margin,
    pivot,
    n,
    dim,
    depth,
    stride_n,
    stride_d,
    CENTERED: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows under a scale each, so that a row is packed alike in every batch.

    `pivot` = row . class_center; `margin`: a product of these parts with those of any class is no
    further from the true one. `limits` of the classes: largest |t|, |t - packed|, |lo|, |t| before
    centering, and |center| of the images.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    largest = tl.zeros([ROWS], tl.float32)
    for start in range(0, depth, BLOCK_D):
        col = start + tl.arange(0, BLOCK_D)
        value = load_rows(source, row, inside, col, dim, stride_n, stride_d)
        if CENTERED:
            value = _centered(value, center, inside, col, dim)
        largest = tl.maximum(largest, tl.max(tl.abs(value), 1).to(tl.float32))
    scale, unscale = _power_of_two(largest)
    norm = tl.zeros([ROWS], tl.float64)
    rest = tl.zeros([ROWS], tl.float64)
    small = tl.zeros([ROWS], tl.float64)
    dot = tl.zeros([ROWS], tl.float64)
    for start in range(0, depth, BLOCK_D):
        col = start + tl.arange(0, BLOCK_D)
        value = load_rows(source, row, inside, col, dim, stride_n, stride_d)
        dot += tl.sum(value * tl.load(class_center + col, mask=col < dim, other=0.0)[None, :], 1)
        if CENTERED:
            value = _centered(value, center, inside, col, dim)
        scaled = value * scale[:, None]
        packed, low = _store_split(scaled, hi, lo, row[:, None] * depth + col[None, :], SPLIT)
        norm += tl.sum(value * value, 1)
        rest += tl.sum((scaled - packed) * (scaled - packed), 1)
        small += tl.sum(low * low, 1)
    size = tl.sqrt(norm)
    lost = tl.sqrt(rest) / scale
    kept = size + lost
    largest_t = tl.load(limits)
    lost_t = tl.load(limits + 1)
    kept_t = largest_t + lost_t
    raw = size + tl.load(limits + 4)
    # Cauchy-Schwarz for what the parts lost and for lo . lo, which is left out; then what adding up
    # loses: tensor cores truncate, by at most 2^-22 of |x| |t| per term (a loose bound)
    terms = 1
    if SPLIT:
        terms = 3
    bound = lost * largest_t + kept * lost_t + tl.sqrt(small) / scale * tl.load(limits + 2)
    bound += kept * kept_t * (2.384185791015625e-07 * terms * depth)
    bound += raw * largest_t * 2.384185791015625e-07
    # float64 sums of the exact products (2^-50 per term), and products that vanish (2^-120)
    bound = bound * 1.01 + raw * tl.load(limits + 3) * (8.881784197001252e-16 * depth)
    tl.store(margin + row, bound + 7.52316384526264e-37)
    tl.store(inverse + row, unscale)
    tl.store(pivot + row, dot)

"""Scaled products of images and classes, reduced tile by tile and never stored.

One program walks one segment of the classes for a block of images. Segments depend on the number of
classes alone, and their partial sums are merged in order, so a row is the same bits in every batch.
"""

import triton
import triton.language as tl


@triton.jit
def products(
    x_hi,
    x_lo,
    t_hi,
    t_lo,
    rows,
    cols,
    depth,
    TERMS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Dot products [BLOCK_N, BLOCK_C] of packed rows, in units of the packed values."""
    step = tl.arange(0, BLOCK_D)
    x_at = rows.to(tl.int64)[:, None] * depth + step[None, :]
    t_at = cols.to(tl.int64)[None, :] * depth + step[:, None]
    total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for start in range(0, depth, BLOCK_D):
        x = tl.load(x_hi + x_at + start)
        t = tl.load(t_hi + t_at + start)
        if TERMS == 1:
            total = tl.dot(x, t, total)
        else:
            # tensor cores truncate as they add: short sums there, small terms first, and the long
            # sum outside, rounded to nearest (Ootomo & Yokota, IJHPCA 2022)
            part = tl.dot(tl.load(x_lo + x_at + start), t)
            part = tl.dot(x, tl.load(t_lo + t_at + start), part)
            part = tl.dot(x, t, part)
            total += part
    return total


@triton.jit
def scores(
    x_hi,
    x_lo,
    t_hi,
    t_lo,
    inverse,
    bias,
    rows,
    cols,
    n_classes,
    depth,
    TERMS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Products with the centered classes, -inf beyond them; `inverse` undoes the scales."""
    dots = products(x_hi, x_lo, t_hi, t_lo, rows, cols, depth, TERMS, BLOCK_N, BLOCK_C, BLOCK_D)
    dots = dots * inverse[:, None]
    if TERMS == 1:
        dots += tl.load(bias + cols)[None, :]
    return tl.where((cols < n_classes)[None, :], dots, float("-inf"))


@triton.jit
def _store_maxima(
    maxima,
    dots,
    rows,
    tile,
    tiles,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Largest of every GROUP classes, those 8 apart: a thread holds them all and exchanges none."""
    GROUPS: tl.constexpr = BLOCK_C // GROUP
    best = tl.max(tl.reshape(dots, (BLOCK_N, GROUPS // 8, GROUP, 8)), axis=2)
    best = tl.reshape(best, (BLOCK_N, GROUPS))
    group = tile * GROUPS + tl.arange(0, GROUPS)
    tl.store(maxima + rows.to(tl.int64)[:, None] * (GROUPS * tiles) + group[None, :], best)
    return tl.max(best, axis=1)


@triton.jit
def walk(
    x_hi,
    x_lo,
    t_hi,
    t_lo,
    inverse_ptr,
    scale_ptr,
    bias,
    factor_ptr,
    labels_ptr,
    maxima,
    partial,
    n_rows,
    n_classes,
    depth,
    tiles,
    tiles_per_segment,
    TERMS: tl.constexpr,
    MAXIMA: tl.constexpr,
    SUMS: tl.constexpr,
    MOMENTS: tl.constexpr,
    LABELS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Maxima of groups of classes, and sums of the softmax with one running maximum a row.

    With d = (score - m) * factor in log2: partial [4, segments, n_rows] = m, sum of 2^d, then
    MOMENTS: sums of 2^d d and 2^2d, or LABELS: the score of the label, -inf where it is elsewhere.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    segment = tl.program_id(1)
    inverse = tl.load(inverse_ptr + rows) * tl.load(scale_ptr)
    top = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    moment = tl.zeros([BLOCK_N], tl.float32)
    square = tl.zeros([BLOCK_N], tl.float32)
    if SUMS:
        factor = tl.load(factor_ptr + rows)
    if LABELS:
        labels = tl.load(labels_ptr + rows)
        moment = tl.full([BLOCK_N], float("-inf"), tl.float32)
    first = segment * tiles_per_segment
    for tile in range(first, tl.minimum(first + tiles_per_segment, tiles)):
        cols = tile * BLOCK_C + tl.arange(0, BLOCK_C)
        dots = scores(
            x_hi, x_lo, t_hi, t_lo, inverse, bias, rows, cols, n_classes, depth,
            TERMS, BLOCK_N, BLOCK_C, BLOCK_D,
        )  # fmt: skip
        if MAXIMA:
            best = _store_maxima(maxima, dots, rows, tile, tiles, GROUP, BLOCK_N, BLOCK_C)
        else:
            best = tl.max(dots, axis=1)
        if SUMS:
            best = tl.maximum(best, top)
            # 2^-200 is zero in float32, and zero times -200 is no NaN
            shift = tl.maximum((top - best) * factor, -200.0)
            keep = tl.exp2(shift)
            power = tl.maximum((dots - best[:, None]) * factor[:, None], -200.0)
            term = tl.exp2(power)
            if MOMENTS:
                moment = (moment + total * shift) * keep + tl.sum(term * power, axis=1)
                square = square * keep * keep + tl.sum(term * term, axis=1)
            if LABELS:
                here = tl.where(cols[None, :] == labels[:, None], dots, float("-inf"))
                moment = tl.maximum(moment, tl.max(here, axis=1))
            total = total * keep + tl.sum(term, axis=1)
            top = best
    if SUMS:
        size = tl.num_programs(1).to(tl.int64) * n_rows
        at = partial + segment.to(tl.int64) * n_rows + rows
        tl.store(at, top)
        tl.store(at + size, total)
        if MOMENTS or LABELS:
            tl.store(at + 2 * size, moment)
        if MOMENTS:
            tl.store(at + 3 * size, square)


@triton.jit
def statistics(
    x_hi,
    x_lo,
    t_hi,
    t_lo,
    inverse_ptr,
    scale_ptr,
    bias,
    y_hi,
    y_lo,
    u_hi,
    u_lo,
    other_inverse_ptr,
    other_scale_ptr,
    other_bias,
    offset_ptr,
    maxima,
    partial,
    n_rows,
    n_classes,
    depth,
    other_depth,
    tiles,
    tiles_per_segment,
    TERMS: tl.constexpr,
    OTHER: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Maxima of groups; partial [2, segments, n_rows] = smallest, sum of |score - other score|."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    segment = tl.program_id(1)
    inverse = tl.load(inverse_ptr + rows) * tl.load(scale_ptr)
    low = tl.full([BLOCK_N], float("inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    if OTHER:
        other_inverse = tl.load(other_inverse_ptr + rows) * tl.load(other_scale_ptr)
        offset = tl.load(offset_ptr + rows)
    first = segment * tiles_per_segment
    for tile in range(first, tl.minimum(first + tiles_per_segment, tiles)):
        cols = tile * BLOCK_C + tl.arange(0, BLOCK_C)
        inside = (cols < n_classes)[None, :]
        dots = scores(
            x_hi, x_lo, t_hi, t_lo, inverse, bias, rows, cols, n_classes, depth,
            TERMS, BLOCK_N, BLOCK_C, BLOCK_D,
        )  # fmt: skip
        _store_maxima(maxima, dots, rows, tile, tiles, GROUP, BLOCK_N, BLOCK_C)
        low = tl.minimum(low, tl.min(tl.where(inside, dots, float("inf")), axis=1))
        if OTHER:
            others = scores(
                y_hi, y_lo, u_hi, u_lo, other_inverse, other_bias, rows, cols, n_classes,
                other_depth, TERMS, BLOCK_N, BLOCK_C, BLOCK_D,
            )  # fmt: skip
            # infinite beyond the classes
            gap = tl.where(inside, dots, 0.0) - tl.where(inside, others, 0.0) + offset[:, None]
            total += tl.sum(tl.where(inside, tl.abs(gap), 0.0), axis=1)
    at = partial + segment.to(tl.int64) * n_rows + rows
    tl.store(at, low)
    if OTHER:
        tl.store(at + tl.num_programs(1).to(tl.int64) * n_rows, total)


@triton.jit
def finish(
    partial,
    factor_ptr,
    score,
    label_score,
    confidence,
    entropy,
    likelihood,
    squares,
    topk_prob,
    n,
    n_rows,
    size,
    segments,
    k,
    LABELS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Partial sums of the segments in order, then the outputs of the softmax.

    Probabilities are those of the exact scores below the best, which itself has 1 / sum.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    good = rows < n
    factor = tl.load(factor_ptr + rows, mask=good, other=1.0)
    top = tl.full([BLOCK_N], float("-inf"), tl.float32)
    at = partial + rows
    for _ in range(segments):
        top = tl.maximum(top, tl.load(at))
        at += n_rows
    total = tl.zeros([BLOCK_N], tl.float64)
    moment = tl.zeros([BLOCK_N], tl.float64)
    square = tl.zeros([BLOCK_N], tl.float64)
    at = partial + rows
    for _ in range(segments):
        shift = (tl.load(at).to(tl.float64) - top) * factor
        keep = tl.exp(tl.maximum(shift, -200.0))
        part = tl.load(at + size).to(tl.float64)
        total += part * keep
        bits = tl.load(at + 2 * size).to(tl.float64) * 0.6931471805599453
        moment += (bits + part * tl.maximum(shift, -200.0)) * keep
        square += tl.load(at + 3 * size).to(tl.float64) * keep * keep
        at += n_rows
    logarithm = tl.log(total)
    best = tl.load(score + rows * k, mask=good, other=0.0)
    tl.store(confidence + rows, (1.0 / total).to(tl.float32), mask=good)
    tl.store(entropy + rows, (logarithm - moment / total).to(tl.float32), mask=good)
    tl.store(squares + rows, (square / (total * total)).to(tl.float32), mask=good)
    if LABELS:
        own = tl.load(label_score + rows, mask=good, other=0.0)
        value = (own - best) * factor - logarithm
        tl.store(likelihood + rows, value.to(tl.float32), mask=good)
    for place in range(k):
        value = tl.load(score + rows * k + place, mask=good, other=0.0)
        prob = tl.exp((value - best) * factor) / total
        tl.store(topk_prob + rows * k + place, prob.to(tl.float32), mask=good)

"""Kernels before and in the screen: rows to fp16, doubts and biases, and the tiles of scores."""

# Triton's language is not typed the way it is used.
# pyright: reportCallIssue=none, reportArgumentType=none, reportOperatorIssue=none
# pyright: reportIndexIssue=none, reportGeneralTypeIssues=none, reportAttributeAccessIssue=none

from __future__ import annotations

import triton
import triton.language as tl

from vlcal.ops._triton.binning_kernels import count_bad

LARGEST_HALF = tl.constexpr(65504.0)
LARGEST_FLOAT = tl.constexpr(1e37)
# the largest coordinate of the sample goes to 2^11: 32 times as large still fits in fp16, and all
# down to 2^-25 of it keep their 11 bits
TOP = tl.constexpr(11)
# beyond, float64 squares could leave its range; such rows are found not to fit and scanned exactly
EXTREME = tl.constexpr(400)
TINY = tl.constexpr(1e-30)


@triton.jit
def scale_kernel(largest_ptr, most_ptr, scale_ptr, LIMITED: tl.constexpr):
    largest = tl.load(largest_ptr)
    exponent = (largest.to(tl.int64, bitcast=True) >> 52) - 1022
    # of 0, as of NaN, there is none
    power = TOP - tl.where(largest > 0, exponent, 0)
    power = tl.minimum(tl.maximum(power, -EXTREME), EXTREME)
    scale = ((power + 1023) << 52).to(tl.float64, bitcast=True)
    if LIMITED:
        scale = tl.minimum(scale, tl.load(most_ptr))
    tl.store(scale_ptr, scale)


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
    bad_ptr,
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
    wrong = tl.zeros([BLOCK_N], dtype=tl.int32)
    length = tl.zeros([BLOCK_N], dtype=tl.float64)
    residual = tl.zeros([BLOCK_N], dtype=tl.float64)
    lift = tl.zeros([BLOCK_N], dtype=tl.float64)
    for start in range(0, PADDED, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = real[:, None] & (d < dim)[None, :]
        at = row[:, None] * stride_n + d.to(tl.int64)[None, :] * stride_d
        # half precisions are widened by way of float32, which every version can do
        value = tl.load(rows_ptr + at, mask=inside, other=0.0)
        # NaN, too, is not less
        wrong |= tl.max((tl.abs(value) < float("inf")).to(tl.int32) ^ 1, axis=1)
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
    count_bad(bad_ptr, wrong)
    tl.store(length_ptr + row, tl.sqrt(length), mask=real)
    tl.store(residual_ptr + row, tl.sqrt(residual), mask=real)
    tl.store(lift_ptr + row, lift, mask=real)


@triton.jit
def _weight(of_keys, of_queries):
    # any positive weight will do
    weight = (tl.minimum(of_keys, 1 / TINY) + TINY) / (tl.minimum(of_queries, 1 / TINY) + TINY)
    weight = tl.where(weight == weight, weight, 1.0)
    return tl.minimum(tl.maximum(weight, TINY), 1 / TINY)


@triton.jit
def doubt_kernel(
    norms_ptr,
    typical_ptr,
    stride_typical,
    scale_ptr,
    keys_typical_ptr,
    stride_keys_typical,
    keys_scale_ptr,
    offset_ptr,
    doubts_ptr,
    factors_ptr,
    n,
    dim,
    DOT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    kappa = tl.cast(dim + 8, tl.float64) * 2.0**-22
    eta = tl.cast(dim + 64, tl.float64) * 2.0**-52
    scale, keys_scale = tl.load(scale_ptr), tl.load(keys_scale_ptr)
    ratio = scale / keys_scale
    offset = tl.load(offset_ptr)
    shift = scale * offset
    # what rows of either kind usually have for alpha, beta and their likes of the keys
    keys_residual = tl.load(keys_typical_ptr + stride_keys_typical)
    keys_span = tl.load(keys_typical_ptr) + keys_residual
    usual_residual = tl.load(typical_ptr + stride_typical)
    usual_beta = tl.load(typical_ptr) + usual_residual
    w1 = _weight(keys_span, usual_residual + kappa * usual_beta)
    w2 = _weight(keys_residual + kappa * keys_span, usual_beta)
    if tl.program_id(0) == 0:
        tl.store(factors_ptr, ratio)
        tl.store(factors_ptr + 1, 0.5 / w1)
        tl.store(factors_ptr + 2, 0.5 / w2)
        tl.store(factors_ptr + 3, 4 * eta * ratio)
        tl.store(factors_ptr + 4, keys_scale * offset)
        tl.store(factors_ptr + 5, scale * keys_scale * (1.0 if DOT else 0.5))
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = row < n
    length = tl.load(norms_ptr + row, mask=real, other=0.0)
    residual = tl.load(norms_ptr + n + row, mask=real, other=0.0)
    lift = tl.load(norms_ptr + 2 * n + row, mask=real, other=0.0)
    beta = length + residual
    alpha = residual + kappa * beta
    far = length + shift
    doubt = 0.5 * (w1 * alpha * alpha + w2 * beta * beta) * (1 + 2.0**-20)
    doubt = doubt + 4 * eta * far * far / ratio + 1e-20
    doubt = tl.where(doubt == doubt, doubt, float("inf"))
    base = -(lift + shift * shift) / ratio
    known = (doubt < float("inf")) & (base < float("inf"))
    reach = tl.where(known, base, float("-inf")) - tl.where(known, doubt, 0.0)
    tl.store(doubts_ptr + row, doubt, mask=real)
    tl.store(doubts_ptr + n + row, base, mask=real)
    tl.store(doubts_ptr + 2 * n + row, reach, mask=real)


@triton.jit
def floor_kernel(
    best_ptr,
    doubt_ptr,
    floor_ptr,
    rung_ptr,
    rising_ptr,
    n,
    wanted,
    RUNGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = row < n
    doubt = tl.load(doubt_ptr + row, mask=real, other=0.0)
    for rung in tl.static_range(RUNGS + 1):
        # witnesses come best first: the last of those wanted, of half of them, of a quarter, ...
        rank = tl.maximum(wanted >> rung, 1)
        best = tl.load(best_ptr + row * wanted + rank - 1, mask=real, other=0.0)
        # sure of the witness, and of every key that is as good
        floor = best.to(tl.float64) - doubt - doubt
        # float32 rounds by less than the share taken here; the constant is for what it flushes to 0
        floor = (floor - tl.abs(floor) * 2.0**-23 - 1e-30).to(tl.float32)
        if rung == 0:
            tl.store(floor_ptr + row, floor, mask=real)
        else:
            tl.store(rung_ptr + row * RUNGS + rung - 1, best, mask=real)
            tl.store(rising_ptr + row * RUNGS + rung - 1, floor, mask=real)


@triton.jit
def bias_kernel(
    length_ptr,
    residual_ptr,
    lift_ptr,
    factors_ptr,
    upper_ptr,
    lower_ptr,
    gap_ptr,
    n,
    GAP_KEYS: tl.constexpr,
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
    # a key about which nothing is known is always a candidate and never a witness
    known = (doubt < LARGEST_FLOAT) & (tl.abs(lift) < LARGEST_FLOAT)
    upper = tl.where(known, lift, 0.0) + tl.where(known, doubt, 0.0)
    lower = tl.where(known, lift, 0.0) - tl.where(known, doubt, 0.0)
    # float32 rounds by less than the share added here; the constant is for what it flushes to zero
    upper = tl.where(known, upper + (tl.abs(upper) * 2.0**-23 + 1e-30), float("inf"))
    lower = tl.where(known, lower - (tl.abs(lower) * 2.0**-23 + 1e-30), float("-inf"))
    upper, lower = upper.to(tl.float32), lower.to(tl.float32)
    tl.store(upper_ptr + row, upper, mask=real)
    tl.store(lower_ptr + row, lower, mask=real)
    # of float64, so that the difference is never rounded down to less
    gap = (upper.to(tl.float64) - lower.to(tl.float64)) * (1 + 2.0**-22)
    gap = tl.max(tl.reshape(tl.where(real, gap, 0.0), (BLOCK // GAP_KEYS, GAP_KEYS)), axis=1)
    part = tl.program_id(0).to(tl.int64) * (BLOCK // GAP_KEYS) + tl.arange(0, BLOCK // GAP_KEYS)
    tl.store(gap_ptr + part, gap.to(tl.float32), mask=part * GAP_KEYS < n)


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
    scores = tl.zeros([BLOCK_Q, BLOCK_K], dtype=tl.float32)
    for number in range(0, mine * STEPS):
        # addresses are functions of the number alone, or loads could not run ahead
        tile = tl.program_id(0) + (number // STEPS) * tl.num_programs(0)
        query_tile, key_tile = tile % query_tiles, tl.cast(tile // query_tiles, tl.int64)
        q_at = tl.cast(query_tile * BLOCK_Q, tl.int64) + tl.arange(0, BLOCK_Q)
        k_at = key_tile * BLOCK_K + tl.arange(0, BLOCK_K)
        # rows behind the last are the last again: loads need no mask, their scores are dropped
        q_row = tl.minimum(q_at, n_queries - 1)
        k_row = tl.minimum(k_at, n_keys - 1)
        d = (number % STEPS) * BLOCK_D + tl.arange(0, BLOCK_D)
        q = tl.load(q_ptr + q_row[:, None] * DEPTH + d[None, :])
        k = tl.load(k_ptr + k_row[None, :] * (every * DEPTH) + d[:, None])
        scores = tl.dot(q, k, scores)
        if number % STEPS == STEPS - 1:
            bias = tl.load(bias_ptr + k_at, mask=k_at < n_keys, other=float("-inf"))
            scores += bias[None, :]
            best = tl.max(tl.reshape(scores, [BLOCK_Q, WIDTH, STEP]), axis=1)
            real = (q_at < n_queries)[:, None]
            column = tl.arange(0, STEP)
            if APPEND:
                first = key_tile * BLOCK_K + column
                floor = tl.load(floor_ptr + q_at, mask=q_at < n_queries, other=float("inf"))
                found = (best >= floor[:, None]) & (first < n_keys)[None, :] & real
                count_at = count_ptr + q_at[:, None] + tl.zeros([1, STEP], tl.int64)
                one = tl.full([BLOCK_Q, STEP], 1, tl.int32)
                place = tl.atomic_add(count_at, one, mask=found, sem="relaxed")
                kept = found & (place < capacity)
                out = q_at[:, None] * capacity + place
                tl.store(score_ptr + out, best, mask=kept)
                first = first[None, :] + tl.zeros([BLOCK_Q, 1], tl.int64)
                tl.store(first_ptr + out, first, mask=kept)
            else:
                out = q_at[:, None] * groups + (key_tile * STEP + column)[None, :]
                tl.store(score_ptr + out, best, mask=real)
            scores = tl.zeros([BLOCK_Q, BLOCK_K], dtype=tl.float32)

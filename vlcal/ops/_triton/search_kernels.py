"""Kernels before and in the screen: rows to fp16, biases of keys, and the tiles of scores."""

# Triton's language is not typed the way it is used.
# pyright: reportCallIssue=none, reportArgumentType=none, reportOperatorIssue=none
# pyright: reportIndexIssue=none, reportGeneralTypeIssues=none, reportAttributeAccessIssue=none

from __future__ import annotations

import triton
import triton.language as tl

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
    # a key about which nothing is known is always a candidate and never a witness
    known = (doubt < LARGEST_FLOAT) & (tl.abs(lift) < LARGEST_FLOAT)
    upper = tl.where(known, lift, 0.0) + tl.where(known, doubt, 0.0)
    lower = tl.where(known, lift, 0.0) - tl.where(known, doubt, 0.0)
    # float32 rounds by less than the share added here; the constant is for what it flushes to zero
    upper = tl.where(known, upper + (tl.abs(upper) * 2.0**-23 + 1e-30), float("inf"))
    lower = tl.where(known, lower - (tl.abs(lower) * 2.0**-23 + 1e-30), float("-inf"))
    tl.store(upper_ptr + row, upper.to(tl.float32), mask=real)
    tl.store(lower_ptr + row, lower.to(tl.float32), mask=real)


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

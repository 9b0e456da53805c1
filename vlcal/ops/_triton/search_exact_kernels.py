"""Kernels of the exact phase: float64 costs in the order of `reference.folded_sum`, and the k best.

A program keeps the k best of one query, or of a few, in registers; of equal costs the lowest key
wins. No multiplication may be fused with an addition here: launches say so.
"""

# Triton's language is not typed the way it is used.
# pyright: reportCallIssue=none, reportArgumentType=none, reportOperatorIssue=none
# pyright: reportIndexIssue=none, reportGeneralTypeIssues=none, reportAttributeAccessIssue=none

from __future__ import annotations

import triton
import triton.language as tl

LANES = tl.constexpr(32)
# keys no real one reaches: an empty place among the best, a candidate that does not count, and one
# that is in no list
EMPTY = tl.constexpr(1 << 62)
NOBODY = tl.constexpr((1 << 62) + (1 << 61))
ABSENT = tl.constexpr(-(1 << 62))


@triton.jit
def _wide(value):
    # half precisions by way of float32, which every version can do
    if value.dtype != tl.float64:
        value = value.to(tl.float32).to(tl.float64)
    return value


@triton.jit
def _costs(
    query_ptr,
    query_stride,
    key_ptr,
    counts,
    stride_d,
    dim,
    DOT: tl.constexpr,
    Q: tl.constexpr,
    E: tl.constexpr,
    UNROLL: tl.constexpr,
):
    # query_ptr [Q]; key_ptr and counts [Q, E], or [1, E] for the same keys
    lane = tl.arange(0, LANES)
    lanes = tl.zeros([Q, E, LANES], dtype=tl.float64)
    for start in range(0, dim, LANES * UNROLL):
        for part in tl.static_range(UNROLL):
            d = (lane + (start + part * LANES)).to(tl.int64)
            inside = d < dim
            query = tl.load(
                query_ptr[:, None] + (d * query_stride)[None, :], mask=inside[None, :], other=0.0
            )
            key = tl.load(
                key_ptr[:, :, None] + (d * stride_d)[None, None, :],
                mask=counts[:, :, None] & inside[None, None, :],
                other=0.0,
            )
            if DOT:
                lanes -= _wide(query)[:, None, :] * _wide(key)
            else:
                difference = _wide(query)[:, None, :] - _wide(key)
                lanes += difference * difference
    # folded by halves; a sum of two does not depend on their order
    lanes = tl.sum(tl.reshape(lanes, [Q, E, 2, 16]), axis=2)
    lanes = tl.sum(tl.reshape(lanes, [Q, E, 2, 8]), axis=2)
    lanes = tl.sum(tl.reshape(lanes, [Q, E, 2, 4]), axis=2)
    lanes = tl.sum(tl.reshape(lanes, [Q, E, 2, 2]), axis=2)
    return tl.sum(lanes, axis=2)


@triton.jit
def _each(values, Q: tl.constexpr):
    # a number instead of [1]: numbers have no layout, and so cannot force the one of the costs,
    # which many threads share, on the list of the best
    if Q == 1:
        return tl.max(values, axis=0)
    else:
        return values


@triton.jit
def _column(values, Q: tl.constexpr):
    if Q == 1:
        return values
    else:
        return values[:, None]


@triton.jit
def _first(cost, key, Q: tl.constexpr):
    # the smallest cost of each row and its key, of equal ones the lowest
    least = _each(tl.min(cost, axis=1), Q)
    return least, _each(tl.min(tl.where(cost == _column(least, Q), key, NOBODY), axis=1), Q)


@triton.jit
def _last(cost, key, Q: tl.constexpr):
    most = _each(tl.max(cost, axis=1), Q)
    return most, _each(tl.max(tl.where(cost == _column(most, Q), key, -1), axis=1), Q)


@triton.jit
def _any(values, Q: tl.constexpr):
    if Q == 1:
        return values
    else:
        return tl.max(values.to(tl.int32), axis=0) > 0


@triton.jit
def _without(cost, key, gone):
    return tl.where(gone, float("inf"), cost), tl.where(gone, NOBODY, key)


@triton.jit
def _keep(best_cost, best_key, cost, key, Q: tl.constexpr):
    # every candidate that beats the last of the best takes its place
    c, i = _first(cost, key, Q)
    w, j = _last(best_cost, best_key, Q)
    better = (c < w) | ((c == w) & (i < j))
    while _any(better, Q):
        i, j = tl.where(better, i, ABSENT), tl.where(better, j, ABSENT)
        place = best_key == _column(j, Q)
        best_cost = tl.where(place, _column(c, Q), best_cost)
        best_key = tl.where(place, _column(i, Q), best_key)
        cost, key = _without(cost, key, key == _column(i, Q))
        c, i = _first(cost, key, Q)
        w, j = _last(best_cost, best_key, Q)
        better = (c < w) | ((c == w) & (i < j))
    return best_cost, best_key


@triton.jit
def _nothing_yet(k, Q: tl.constexpr, KP: tl.constexpr):
    # places behind k look like the best there is, so that nothing is ever put there
    # of the full shape at once: the layout of a [Q, 1] would give every thread all places
    place = tl.zeros([Q, KP], dtype=tl.int64) + tl.arange(0, KP)[None, :]
    cost = tl.where(place < k, float("inf"), float("-inf")).to(tl.float64)
    return cost, tl.where(place < k, place + EMPTY, -1 - place)


@triton.jit
def _store_sorted(cost_ptr, key_ptr, best_cost, best_key, k, real, Q: tl.constexpr):
    # cost_ptr, key_ptr and real [Q]
    best_cost, best_key = _without(best_cost, best_key, best_key < 0)
    for place in range(k):
        c, i = _first(best_cost, best_key, Q)
        tl.store(cost_ptr + place, c + tl.zeros([Q], tl.float64), mask=real)
        tl.store(key_ptr + place, i + tl.zeros([Q], tl.int64), mask=real)
        best_cost, best_key = _without(best_cost, best_key, best_key == _column(i, Q))


@triton.jit
def rerank_kernel(
    queries_ptr,
    query_stride_n,
    query_stride_d,
    keys_ptr,
    stride_n,
    stride_d,
    dim,
    count_ptr,
    first_ptr,
    score_ptr,
    capacity,
    reach_ptr,
    unit_ptr,
    cost_ptr,
    key_ptr,
    n_queries,
    n_keys,
    k,
    itself,
    step,
    DOT: tl.constexpr,
    WIDTH: tl.constexpr,
    TOGETHER: tl.constexpr,
    KP: tl.constexpr,
    Q: tl.constexpr,
    UNROLL: tl.constexpr,
):
    q = tl.program_id(0).to(tl.int64) * Q + tl.arange(0, Q)
    real = q < n_queries
    found = tl.load(count_ptr + q, mask=real, other=0)
    # an overflowing list is left to the scan
    real = real & (found <= capacity)
    found = tl.where(real, found, 0)
    q = tl.where(real, q, 0)
    base = _each(tl.load(reach_ptr + q), Q)
    unit = tl.load(unit_ptr)
    best_cost, best_key = _nothing_yet(k, Q, KP)
    entry = tl.arange(0, TOGETHER)[None, :]
    at = (q * capacity)[:, None] + entry
    score = tl.load(score_ptr + at, mask=entry < found[:, None], other=float("-inf"))
    matters = score > float("-inf")
    # best entries first, until none can hold a neighbor
    while tl.max(tl.max(matters.to(tl.int32), axis=1), axis=0) > 0:
        first = tl.load(first_ptr + at, mask=matters, other=0).to(tl.int64)
        key = first[:, :, None] + (tl.arange(0, WIDTH) * step).to(tl.int64)[None, None, :]
        counts = matters[:, :, None] & (key < n_keys) & (key != (q + itself)[:, None, None])
        key = tl.reshape(key, [Q, TOGETHER * WIDTH])
        counts = tl.reshape(counts, [Q, TOGETHER * WIDTH])
        cost = _costs(
            queries_ptr + q * query_stride_n,
            query_stride_d,
            keys_ptr + key * stride_n,
            counts,
            stride_d,
            dim,
            DOT,
            Q,
            TOGETHER * WIDTH,
            UNROLL,
        )
        cost, key = _without(cost, key, counts == 0)
        best_cost, best_key = _keep(best_cost, best_key, cost, key, Q)
        reach = _column(base - unit * _each(tl.max(best_cost, axis=1), Q), Q)
        entry += TOGETHER
        at += TOGETHER
        score = tl.load(score_ptr + at, mask=entry < found[:, None], other=float("-inf"))
        matters = (score > float("-inf")) & (score.to(tl.float64) >= reach)
    _store_sorted(cost_ptr + q * k, key_ptr + q * k, best_cost, best_key, k, real, Q)


@triton.jit
def overflow_kernel(count_ptr, order_ptr, waiting_ptr, n_queries, capacity, BLOCK: tl.constexpr):
    q = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    waits = tl.load(count_ptr + q, mask=q < n_queries, other=0) > capacity
    one = tl.full([BLOCK], 1, tl.int64)
    at = waiting_ptr + tl.zeros([BLOCK], tl.int64)
    place = tl.atomic_add(at, one, mask=waits, sem="relaxed")
    tl.store(order_ptr + place, q, mask=waits)


@triton.jit
def scan_kernel(
    queries_ptr,
    query_stride_n,
    query_stride_d,
    keys_ptr,
    stride_n,
    stride_d,
    dim,
    order_ptr,
    waiting_ptr,
    cost_ptr,
    key_ptr,
    n_keys,
    k,
    itself,
    slices,
    DOT: tl.constexpr,
    Q: tl.constexpr,
    E: tl.constexpr,
    KP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    waiting = tl.load(waiting_ptr)
    each = tl.cdiv(tl.cdiv(n_keys, slices), E) * E
    place = tl.arange(0, KP)[None, :]
    for item in range(tl.program_id(0), tl.cdiv(waiting, Q) * slices, tl.num_programs(0)):
        rank = tl.cast(item // slices, tl.int64) * Q + tl.arange(0, Q)
        real = rank < waiting
        q = tl.load(order_ptr + rank, mask=real, other=0)
        begin = tl.cast(item % slices, tl.int64) * each
        end = tl.minimum(begin + each, n_keys)
        best_cost, best_key = _nothing_yet(k, Q, KP)
        for start in range(begin, end, E):
            key = (start + tl.arange(0, E).to(tl.int64))[None, :]
            cost = _costs(
                queries_ptr + q * query_stride_n,
                query_stride_d,
                keys_ptr + key * stride_n,
                key < end,
                stride_d,
                dim,
                DOT,
                Q,
                E,
                UNROLL,
            )
            key = key + tl.zeros([Q, E], dtype=tl.int64)
            gone = (key >= end) | (key == (q + itself)[:, None])
            cost, key = _without(cost, key, gone)
            best_cost, best_key = _keep(best_cost, best_key, cost, key, Q)
        out = (rank * slices + item % slices)[:, None] * k + place
        tl.store(cost_ptr + out, best_cost, mask=real[:, None] & (place < k))
        tl.store(key_ptr + out, best_key, mask=real[:, None] & (place < k))


@triton.jit
def merge_kernel(
    order_ptr,
    waiting_ptr,
    partial_cost_ptr,
    partial_key_ptr,
    cost_ptr,
    key_ptr,
    k,
    slices,
    Q: tl.constexpr,
    E: tl.constexpr,
    KP: tl.constexpr,
):
    rank = tl.program_id(0).to(tl.int64) * Q + tl.arange(0, Q)
    real = rank < tl.load(waiting_ptr)
    if tl.max(real.to(tl.int32), axis=0) > 0:
        q = tl.load(order_ptr + rank, mask=real, other=0)
        best_cost, best_key = _nothing_yet(k, Q, KP)
        for start in range(0, slices * k, E):
            part = (start + tl.arange(0, E))[None, :]
            there = real[:, None] & (part < slices * k)
            at = rank[:, None] * slices * k + part
            cost = tl.load(partial_cost_ptr + at, mask=there, other=float("inf"))
            key = tl.load(partial_key_ptr + at, mask=there, other=0)
            # empty places of different slices look alike
            cost, key = _without(cost, key, (there == 0) | (key >= EMPTY))
            best_cost, best_key = _keep(best_cost, best_key, cost, key, Q)
        _store_sorted(cost_ptr + q * k, key_ptr + q * k, best_cost, best_key, k, real, Q)


@triton.jit
def dots_kernel(
    query_ptr,
    keys_ptr,
    stride_n,
    stride_d,
    dim,
    out_ptr,
    n_keys,
    E: tl.constexpr,
    UNROLL: tl.constexpr,
):
    key = tl.program_id(0).to(tl.int64) * E + tl.arange(0, E)
    cost = _costs(
        query_ptr + tl.zeros([1], dtype=tl.int64),
        1,
        (keys_ptr + key * stride_n)[None, :],
        (key < n_keys)[None, :],
        stride_d,
        dim,
        True,
        1,
        E,
        UNROLL,
    )
    tl.store(out_ptr + key, -tl.reshape(cost, [E]), mask=key < n_keys)

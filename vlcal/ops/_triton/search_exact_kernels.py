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
# keys no real one reaches: an empty place among the best, and a candidate that does not count
EMPTY = tl.constexpr(1 << 62)
NOBODY = tl.constexpr((1 << 62) + (1 << 61))


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
def _first(cost, key):
    # the smallest cost of each row and its key, of equal ones the lowest
    least = tl.min(cost, axis=1)
    return least, tl.min(tl.where(cost == least[:, None], key, NOBODY), axis=1)


@triton.jit
def _last(cost, key):
    most = tl.max(cost, axis=1)
    return most, tl.max(tl.where(cost == most[:, None], key, -1), axis=1)


@triton.jit
def _without(cost, key, gone):
    return tl.where(gone, float("inf"), cost), tl.where(gone, NOBODY, key)


@triton.jit
def _keep(best_cost, best_key, cost, key):
    # every candidate that beats the last of the best takes its place
    c, i = _first(cost, key)
    w, j = _last(best_cost, best_key)
    better = (c < w) | ((c == w) & (i < j))
    while tl.max(better.to(tl.int32), axis=0) > 0:
        place = (best_key == j[:, None]) & better[:, None]
        best_cost = tl.where(place, c[:, None], best_cost)
        best_key = tl.where(place, i[:, None], best_key)
        cost, key = _without(cost, key, (key == i[:, None]) & better[:, None])
        c, i = _first(cost, key)
        w, j = _last(best_cost, best_key)
        better = (c < w) | ((c == w) & (i < j))
    return best_cost, best_key


@triton.jit
def _nothing_yet(k, Q: tl.constexpr, KP: tl.constexpr):
    # places behind k look like the best there is, so that nothing is ever put there
    place = tl.zeros([Q, 1], dtype=tl.int64) + tl.arange(0, KP)[None, :]
    cost = tl.where(place < k, float("inf"), float("-inf")).to(tl.float64)
    return cost, tl.where(place < k, place + EMPTY, -1 - place)


@triton.jit
def _store_sorted(cost_ptr, key_ptr, best_cost, best_key, k, real):
    # cost_ptr, key_ptr and real [Q]
    best_cost, best_key = _without(best_cost, best_key, best_key < 0)
    for place in range(k):
        c, i = _first(best_cost, best_key)
        tl.store(cost_ptr + place, c, mask=real)
        tl.store(key_ptr + place, i, mask=real)
        best_cost, best_key = _without(best_cost, best_key, best_key == i[:, None])


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
    LISTS: tl.constexpr,
    ENTRIES: tl.constexpr,
    KP: tl.constexpr,
    Q: tl.constexpr,
    UNROLL: tl.constexpr,
):
    EACH: tl.constexpr = ENTRIES // LISTS
    q = tl.program_id(0).to(tl.int64) * Q + tl.arange(0, Q)
    real = q < n_queries
    found = tl.load(count_ptr + q, mask=real, other=0)
    real = real & (found <= capacity)
    # an overflowing list is left to the scan
    found = tl.where(real, found, 0)
    q = tl.where(real, q, 0)
    # dealt out, so that few entries are one or two to a list
    part = tl.arange(0, LISTS)[None, :, None]
    entry = part + (tl.arange(0, EACH) * LISTS)[None, None, :]
    at = (q * capacity)[:, None, None] + entry
    score = tl.load(score_ptr + at, mask=entry < found[:, None, None], other=float("-inf"))
    base = tl.load(reach_ptr + q)
    unit = tl.load(unit_ptr)
    best_cost, best_key = _nothing_yet(k, Q, KP)
    reach = base - float("inf")
    top = tl.max(score, axis=2)
    matters = (top > float("-inf")) & (top.to(tl.float64) >= reach[:, None])
    while tl.max(tl.max(matters.to(tl.int32), axis=1), axis=0) > 0:
        # the best entry of every list, while it can still matter
        chosen = part + tl.argmax(score, axis=2).to(tl.int32)[:, :, None] * LISTS
        listed_at = (q * capacity)[:, None] + tl.reshape(chosen, [Q, LISTS])
        first = tl.load(first_ptr + listed_at, mask=matters, other=0).to(tl.int64)
        score = tl.where((entry == chosen) & matters[:, :, None], float("-inf"), score)
        key = first[:, :, None] + (tl.arange(0, WIDTH) * step).to(tl.int64)[None, None, :]
        counts = matters[:, :, None] & (key < n_keys) & (key != (q + itself)[:, None, None])
        key = tl.reshape(key, [Q, LISTS * WIDTH])
        counts = tl.reshape(counts, [Q, LISTS * WIDTH])
        cost = _costs(
            queries_ptr + q * query_stride_n,
            query_stride_d,
            keys_ptr + key * stride_n,
            counts,
            stride_d,
            dim,
            DOT,
            Q,
            LISTS * WIDTH,
            UNROLL,
        )
        cost, key = _without(cost, key, counts == 0)
        best_cost, best_key = _keep(best_cost, best_key, cost, key)
        reach = base - unit * tl.max(best_cost, axis=1)
        top = tl.max(score, axis=2)
        matters = (top > float("-inf")) & (top.to(tl.float64) >= reach[:, None])
    _store_sorted(cost_ptr + q * k, key_ptr + q * k, best_cost, best_key, k, real)


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
            key = key + tl.zeros([Q, 1], dtype=tl.int64)
            gone = (key >= end) | (key == (q + itself)[:, None])
            cost, key = _without(cost, key, gone)
            best_cost, best_key = _keep(best_cost, best_key, cost, key)
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
            best_cost, best_key = _keep(best_cost, best_key, cost, key)
        _store_sorted(cost_ptr + q * k, key_ptr + q * k, best_cost, best_key, k, real)


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

"""Gaussian sums: every query against every point, no matrix of pairs.

A program takes some queries and one slice of the points. It keeps a tile of float32 sums and adds
STEPS terms to each before it adds the sums up across threads and in float64. Adding up across
threads at every step took 28 instructions a pair instead of 9.5. The slices of the points depend on
the number of points alone, so a sum does not depend on the other queries.
"""

import triton
import triton.language as tl

# 2^-200 is 0 in float32; the minimum with it turns NaN (inf * 0, if a bandwidth is huge) to 0, too
FARTHEST = tl.constexpr(200.0)


@triton.jit
def gaussian_sums(
    query_ptr,
    point_ptr,
    bandwidth_ptr,
    sum_ptr,
    n,
    m,
    slice_size,
    stride_query,
    stride_query_axis,
    stride_point,
    stride_point_axis,
    QUERIES: tl.constexpr,
    POINTS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """sums[slice, query] = sum over the slice's points of 2^-d, d = sum (0.849 (x - p) / h)^2."""
    row = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    inside = row < n
    from_query = query_ptr + row * stride_query
    x = tl.load(from_query, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(from_query + stride_query_axis, mask=inside, other=0.0).to(tl.float32)
    # sqrt(log2(e) / 2): exp(-u^2 / 2) = 2^-(this u)^2
    a = tl.minimum(0.8493218002880191 / tl.load(bandwidth_ptr), 3.4028234e38).to(tl.float32)
    b = tl.minimum(0.8493218002880191 / tl.load(bandwidth_ptr + 1), 3.4028234e38).to(tl.float32)
    total = tl.zeros((QUERIES,), tl.float64)
    column = tl.program_id(1).to(tl.int64) * slice_size + tl.arange(0, POINTS)
    for _ in range(0, slice_size, POINTS * STEPS):
        held = tl.zeros((QUERIES, POINTS), tl.float32)
        for _ in range(STEPS):
            from_point = point_ptr + column * stride_point
            # points beyond the last are infinitely far
            px = tl.load(from_point, mask=column < m, other=float("inf")).to(tl.float32)
            py = tl.load(from_point + stride_point_axis, mask=column < m, other=0.0).to(tl.float32)
            dx = (x[:, None] - px[None, :]) * a
            dy = (y[:, None] - py[None, :]) * b
            distance = dx * dx + dy * dy
            # times -1 is a sign on the operand, where a minus would be a subtraction from 0
            held += tl.exp2(tl.minimum(distance, FARTHEST) * -1.0)
            column += POINTS
        total += tl.sum(held, 1).to(tl.float64)
    tl.store(sum_ptr + tl.program_id(1).to(tl.int64) * n + row, total, mask=inside)

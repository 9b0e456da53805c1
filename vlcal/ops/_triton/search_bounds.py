"""The certificate of the screen: how far a score in fp16 can be from the one that counts.

Let c be a center of the keys (any fixed vector), s and t <= s scales, x = s (v - c) for a key v and
y = t (q - c) for a query q, p = t / s. A key is as near as its score S is high:

    distance: |q - v|^2 = (|y|^2 / p - 2 S) / (s t)    S = y.x + p lift    lift = -|x|^2 / 2
    dot:      q.v       = S / (s t) + q.c              S = y.x + p lift    lift = s c.x

With x^ and y^ the rows rounded to fp16 and r = x - x^, e = y - y^ (Cauchy-Schwarz),

    y.x = y^.x^ + e.x + y^.r        |e.x + y^.r| <= |e| |x| + |y^| |r|

where |e| and |r| are measured, so nothing is assumed of the rows: what fp16 cannot hold is in them.

The kernels return float(float(y^.x^) + bias). Products of fp16 are exact in float32. Tensor cores
add n of them (4 on the oldest, 8 or 16 since) to the accumulator in one step: every addend is
aligned to the largest and cut to no fewer than 24 bits, the sum is cut to 24 bits (Fasi et al.,
"Numerical behavior of NVIDIA tensor cores", 2021). No partial sum exceeds
P = |y^| |x^| (1 + kappa), so a step loses at most (n + 2) 2^-23 P <= 1.5 n 2^-23 P, and all of them
kappa |y^| |x^| with kappa = D 2^-22. Adding one by one in float32, rounded or cut, in any order,
loses less. The bias adds 2^-23 (|y^| |x^| + |bias|).

What counts is not S itself but what float64 makes of it in the order of `reference.folded_sum`: off
by less than eta = (D + 64) 2^-52 of s t (|q - c'| + |v - c'|)^2, where c' is 0 for dots and c for
distances.

A bound that is a sum of a part of the query and a part of the key costs the kernels nothing, and
neither odd keys nor odd queries loosen the bounds of others: a b <= (w a^2 + b^2 / w) / 2 for any
w > 0, with equality at w = b / a; w is the ratio of the medians. With a = |e| + kappa |y^| and
o = |c - c'|,

    |S - kernel| <= doubt(query) + doubt(key)
    doubt(query) = (w1 a^2 + w2 |y^|^2) / 2            + 4 eta (|y| + t o)^2 / p + 1e-20
    doubt(key)   = ((|x| + |r|)^2 / w1 + |r|^2 / w2) / 2 + 4 eta (|x| + s o)^2 p + 2^-22 p |lift|

The key's part goes into its bias: a score with the upper bias plus doubt(query) is never below S,
one with the lower bias less doubt(query) never above it.

So no neighbor's upper score is below the k-th best lower score of any k keys, less 2 doubt(query):
this is the floor. At first the k keys are the best of a sample. While keys pass, the screen in CUDA
C++ counts those that are sure to score a rung of its `Ladder`: their upper score less the gap to
the lower one. As soon as k keys have reached a rung, the floor rises to that of the rung.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlcal.ops._triton import search_rows

SAMPLE = 4096


class Frame(NamedTuple):
    """Where rows are placed: row -> scale (row - center)."""

    center: Tensor  # [D] float64
    scale: Tensor  # 0-d float64
    offset: Tensor  # 0-d float64: |center| for dots, else 0


class Rows(NamedTuple):
    """Rows placed and rounded; see `search_rows.place`."""

    frame: Frame
    half: Tensor  # [n, D'] float16
    norms: Tensor  # [3, n] float64: |x|, |x - x^| and the lift
    typical: Tensor  # [2] float64, the medians of length and residual in the sample
    bad: Tensor  # [1] int32, how many of the rows hold NaN or infinity


class Doubts(NamedTuple):
    """The certificate of one search."""

    query: Tensor  # [Q] float64, doubt(query)
    factors: Tensor  # [5] float64, what `search_rows.biases` makes doubt(key) of
    base: Tensor  # [Q] float64: S = base - unit cost, where the cost is what is sorted
    unit: Tensor  # 0-d float64
    reach: Tensor  # [Q] float64: base - doubt(query), -inf where nothing is known


def sample_of(rows: Tensor) -> Tensor:
    """At most SAMPLE rows, evenly spread."""
    return rows[:: -(-len(rows) // SAMPLE)] if len(rows) > SAMPLE else rows


def frame_of(keys: Tensor, dot: bool) -> Frame:
    """The mean of a sample of the keys as the center, and a scale that suits fp16."""
    center = torch.nan_to_num(sample_of(keys).double().mean(0), posinf=0.0, neginf=0.0)
    offset = center.norm() if dot else center.new_zeros(())
    return Frame(center, search_rows.scale(largest_of(keys, center), None), offset)


def frame_of_queries(queries: Tensor, keys: Frame) -> Frame:
    """The frame of the keys, with a smaller scale where the queries need one."""
    return keys._replace(scale=search_rows.scale(largest_of(queries, keys.center), keys.scale))


def largest_of(rows: Tensor, center: Tensor) -> Tensor:
    """The largest coordinate of the sample, 0-d float64."""
    return torch.linalg.vector_norm(sample_of(rows) - center, torch.inf)


def placed(rows: Tensor, frame: Frame, dot: bool) -> Rows:
    """Rows placed in the frame and rounded to fp16."""
    padded = -(-rows.shape[1] // 64) * 64
    half, norms, bad = search_rows.place(rows, frame.center, frame.scale, padded, dot)
    lengths = sample_of(norms[:2].T).sort(dim=0).values
    return Rows(frame, half, norms, lengths[(len(lengths) - 1) // 2], bad)


def doubts(queries: Rows, keys: Rows, dot: bool) -> Doubts:
    """Certificate of the scores of these queries and keys."""
    # zeros behind D add nothing, except to the step that the last products share with them
    dim = -(-len(keys.frame.center) // 16) * 16
    per_query, factors = search_rows.doubts(queries, keys, dim, dot)
    query, base, reach = per_query
    return Doubts(query, factors[:5], base, factors[5], reach)

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
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SAMPLE = 4096
# the largest coordinate of the sample goes to 2^11: 32 times as large still fits in fp16, and all
# down to 2^-25 of it keep their 11 bits
TOP = 11
# beyond, float64 squares could leave its range; such rows are found not to fit and scanned exactly
EXTREME = 400
TINY = 1e-30


class Frame(NamedTuple):
    """Where rows are placed: row -> scale (row - center)."""

    center: Tensor  # [D] float64
    scale: Tensor  # 0-d float64
    offset: Tensor  # 0-d float64: |center| for dots, else 0


class Rows(NamedTuple):
    """Rows placed and rounded; see `search_rows.place`."""

    frame: Frame
    half: Tensor  # [n, D'] float16
    length: Tensor  # [n] float64, |x|
    residual: Tensor  # [n] float64, |x - x^|
    lift: Tensor  # [n] float64


class Doubts(NamedTuple):
    """The certificate of one search."""

    query: Tensor  # [Q] float64, doubt(query)
    factors: Tensor  # [5] float64, what `search_rows.biases` makes doubt(key) of
    base: Tensor  # [Q] float64: S = base - unit cost, where the cost is what is sorted
    unit: Tensor  # 0-d float64


def sample_of(rows: Tensor) -> Tensor:
    """At most SAMPLE rows, evenly spread."""
    return rows[:: -(-len(rows) // SAMPLE)] if len(rows) > SAMPLE else rows


def frame_of(keys: Tensor, dot: bool) -> Frame:
    """The mean of a sample of the keys as the center, and a scale that suits fp16."""
    center = torch.nan_to_num(sample_of(keys).double().mean(0), posinf=0.0, neginf=0.0)
    offset = center.norm() if dot else center.new_zeros(())
    return Frame(center, scale_of(keys, center), offset)


def scale_of(rows: Tensor, center: Tensor) -> Tensor:
    """A power of two that takes the largest coordinate of the sample to about 2^TOP."""
    largest = (sample_of(rows).double() - center).abs().amax().clamp(max=1e300)
    exponent = torch.frexp(largest).exponent.double()
    return (TOP - exponent).clamp(-EXTREME, EXTREME).exp2()


def frame_of_queries(queries: Tensor, keys: Frame) -> Frame:
    """The frame of the keys, with a smaller scale where the queries need one."""
    return keys._replace(scale=torch.minimum(keys.scale, scale_of(queries, keys.center)))


def doubts(queries: Rows, keys: Rows, dot: bool) -> Doubts:
    """Certificate of the scores of these queries and keys."""
    # zeros behind D add nothing, except to the step that the last products share with them
    dim = -(-len(keys.frame.center) // 16) * 16
    kappa, eta = (dim + 8) * 2.0**-22, (dim + 64) * 2.0**-52
    s, t, offset = keys.frame.scale, queries.frame.scale, keys.frame.offset
    ratio = t / s
    beta = queries.length + queries.residual
    alpha = queries.residual + kappa * beta
    typical_span = sample_of(keys.length + keys.residual).median()
    typical_residual = sample_of(keys.residual).median() + kappa * typical_span
    w1, w2 = _weight(typical_span, alpha), _weight(typical_residual, beta)
    far = queries.length + t * offset
    query = 0.5 * (w1 * alpha.square() + w2 * beta.square()) * (1 + 2.0**-20)
    query = query + 4 * eta * far.square() / ratio + 1e-20
    base = -(queries.lift + (t * offset).square()) / ratio
    return Doubts(
        query=query.nan_to_num(nan=torch.inf, posinf=torch.inf),
        factors=torch.stack([ratio, 0.5 / w1, 0.5 / w2, 4 * eta * ratio, s * offset]),
        base=base,
        unit=s * t * (1.0 if dot else 0.5),
    )


def _weight(typical_of_keys: Tensor, of_queries: Tensor) -> Tensor:
    weight = (typical_of_keys + TINY) / (sample_of(of_queries).median() + TINY)
    return weight.nan_to_num(nan=1.0).clamp(TINY, 1 / TINY)


def lowered(values: Tensor) -> Tensor:
    """Float64 values as float32 that are not above them."""
    return (values - values.abs() * 2.0**-23 - TINY).float()

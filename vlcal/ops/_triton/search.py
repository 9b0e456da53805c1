"""Exact k-NN on a GPU: a screen in fp16 on tensor cores, survivors re-ranked in float64.

The two kernels that see every pair are arguments (`Screens`), so that another way of writing them
is another pair of functions and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

# keys whose largest score `group_max` returns as one
GROUP = 64


class Screens(NamedTuple):
    """The two kernels that see every pair of a query and a key, launched on the current stream.

    Both score a pair as `q16 . k16 + bias`: products of fp16 accumulated in float32 by the tensor
    cores from 0, in any order, then one float32 addition of the bias. No argument needs to be
    checked: shapes, types and devices are right, and values are finite but for biases and floors,
    which may be -inf or +inf. There is at least one query and one key.

    group_max(q16, k16, bias) -> [Q, G] float32, G = ceil(V / GROUP): the largest score within each
        of G groups that hold every key exactly once, at most GROUP keys each (which ones does not
        matter). A group without a key, if the partition leaves one, is -inf.
    screen(q16, k16, bias, floor, capacity) -> (count, first, score): appends every pair with
        score >= floor[q] (so -inf >= -inf too, but never a key that does not exist).
        count [Q] int32: entries found, those beyond the capacity too, which are not stored;
        first [Q, capacity] int64 if V >= 2^31 else int32; score [Q, capacity] float32. Entries
        come in any order; what lies beyond count is not read.

    Args of both: q16 [Q, D'] and k16 [V, D'] float16, D' a multiple of 64 (zeros behind D),
        innermost stride 1, and for k16 any multiple of D' as the stride of rows; bias [V] and
        floor [Q] float32, contiguous.

    An entry of `screen` may stand for several keys, `first + i * step` for i < width where that
    is below V; its score is the largest of theirs, and it is there if that reaches the floor.
    """

    group_max: Callable[[Tensor, Tensor, Tensor], Tensor]
    screen: Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]
    width: int = 1
    step: int = 1

"""Exact search on a GPU by the two screens in CUDA C++; everything else of it is Triton's."""

from __future__ import annotations

from torch import Tensor

from vlcal import _cuda
from vlcal.ops import _triton
from vlcal.ops._triton import search as gpu


def _screen(
    q16: Tensor, k16: Tensor, bias: Tensor, floor: Tensor, capacity: int, ladder: gpu.Ladder
) -> tuple[Tensor, Tensor, Tensor]:
    return _cuda.screen(q16, k16, bias, floor, capacity, *ladder)


# kEntryKeys and kEntryStep of csrc/cuda/search_layout.cuh
SCREENS = gpu.Screens(_cuda.group_max, _screen, width=8, step=8)
# the copy engine counts rows in 32 bits
MOST_ROWS = 2**31 - 1024


def missing() -> str | None:
    """Why this search cannot run on this machine; None if it can."""
    if why := _cuda.missing():
        return why
    why = _triton.missing()
    return f"its screens need Triton's exact phase: {why}" if why else None


def refuse(*args: object) -> str | None:
    """Why these inputs cannot be searched; None if they can."""
    rows = max((len(arg) for arg in args if isinstance(arg, Tensor)), default=0)
    if rows > MOST_ROWS:
        return f"takes at most {MOST_ROWS} rows, got {rows}"
    return _cuda.refuse_device(*args) or gpu.refuse(*args)


def refuse_knn(queries: Tensor, keys: Tensor, k: int, *_: object) -> str | None:
    """The same for `knn`."""
    return refuse(queries, keys) or gpu.refuse_knn(queries, keys, k)


def knn(queries: Tensor, keys: Tensor, k: int, exclude_self: bool) -> tuple[Tensor, Tensor]:
    """What `reference.knn` returns."""
    return gpu.knn(queries, keys, k, exclude_self, screens=SCREENS)


def scores(candidates: Tensor, anchors: Tensor, _: int, largest: bool) -> Tensor:
    """What `reference.vocabulary_scores` returns."""
    return gpu.vocabulary_scores(candidates, anchors, largest, screens=SCREENS)


def index(keys: Tensor) -> gpu.Index:
    """Keys prepared for many searches."""
    return gpu.Index(keys, SCREENS)

"""Loads vlcal._C, or remembers in a sentence why not; the only file that passes pointers.

Every function here takes contiguous CPU tensors of the stated types, allocates the outputs and
calls one binding.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor

_C: ModuleType | None
try:
    _C = importlib.import_module("vlcal._C")
    why_missing: str | None = None
except ImportError as error:
    _C = None
    why_missing = (
        f"the native extension was not built ({error}); VLCAL_NATIVE=1 pip install . shows why"
    )


def missing() -> str | None:
    """Why no native operation can run here; None if they can."""
    return why_missing


def refuse_device(*args: object) -> str | None:
    """The native operations take CPU tensors only."""
    devices = {arg.device.type for arg in args if isinstance(arg, Tensor)} - {"cpu"}
    return f"tensors are on {', '.join(sorted(devices))}, it runs on cpu" if devices else None


def library() -> ModuleType:
    """The loaded extension; callers have asked `missing` before."""
    assert _C is not None, why_missing
    return _C


def instruction_sets() -> list[str]:
    """Names of the instruction sets the kernels may use on this CPU, the portable one first."""
    return library().isa_names() if _C is not None else []


def bin_statistics(confidence: Tensor, correct: Tensor, thresholds: Tensor) -> tuple[Tensor, int]:
    """Table [3, B] int64 of counts, correct ones and confidence units, and the first bad row or -1.

    Args:
        confidence: [N] float32 or float64.
        correct: [N] bool.
        thresholds: [B - 1], dtype of `confidence`.
    """
    n_bins = len(thresholds) + 1
    table = torch.empty(3, n_bins, dtype=torch.int64)
    run = {
        torch.float32: library().bin_statistics_float32,
        torch.float64: library().bin_statistics_float64,
    }[confidence.dtype]
    bad = run(
        confidence.data_ptr(),
        correct.data_ptr(),
        len(confidence),
        thresholds.data_ptr(),
        n_bins,
        table.data_ptr(),
        torch.get_num_threads(),
    )
    return table, bad


def real_rows(matrix: Tensor) -> Tensor:
    """Contiguous float64, or float32 (which holds the half precisions); itself if it is that."""
    double = matrix.dtype == torch.float64
    return matrix.to(torch.float64 if double else torch.float32).contiguous()


class SearchIndex:
    """Keys [M, D] float32 or float64, prepared for many exact searches; see csrc/cpu/search.h."""

    def __init__(self, keys: Tensor, dot: bool = False) -> None:
        build = {
            torch.float32: library().SearchIndexFloat32,
            torch.float64: library().SearchIndexFloat64,
        }[keys.dtype]
        self.keys = keys
        self.handle = build(keys.data_ptr(), *keys.shape, dot, torch.get_num_threads())

    def search(self, queries: Tensor, k: int, exclude_self: bool) -> tuple[Tensor, Tensor]:
        """Squared distances (or negated dots) float64 and indices int64, [Q, k], smallest first."""
        queries = queries.double().contiguous()
        cost = torch.empty(len(queries), k, dtype=torch.float64)
        index = torch.empty(len(queries), k, dtype=torch.int64)
        self.handle.search(
            queries.data_ptr(),
            len(queries),
            k,
            exclude_self,
            cost.data_ptr(),
            index.data_ptr(),
            torch.get_num_threads(),
        )
        return cost, index


def dots(keys: Tensor, query: Tensor) -> Tensor:
    """Dot product [M] float64 of each key [M, D] float32 or float64 with `query` [D] float64."""
    run = {torch.float32: library().dots_float32, torch.float64: library().dots_float64}[keys.dtype]
    out = torch.empty(len(keys), dtype=torch.float64)
    threads = torch.get_num_threads()
    run(query.data_ptr(), keys.data_ptr(), *keys.shape, out.data_ptr(), threads)
    return out

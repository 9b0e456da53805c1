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

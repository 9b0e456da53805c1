"""Freed memory given back to the system, where an allocator would keep it in holes."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch


def give_back(device: torch.device) -> None:
    """Let the heap of the CPU release its free pages; nothing on other devices or systems.

    The graph of a pass that is run again later is small but lives on, in between of what the pass
    has freed: glibc then cannot reuse the holes for the next pass, and a bound on what is kept
    would not bound the process.
    """
    trim = _trim() if device.type == "cpu" else None
    if trim is not None:
        trim(0)


@lru_cache
def _trim() -> Any:
    """The `malloc_trim` of glibc, or None where there is no glibc."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):
        return None

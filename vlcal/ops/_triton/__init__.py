"""Kernels in Triton, one file per op: kernels, then the launcher that `ops` lists as a backend.

Every module can be imported without Triton: then `missing` says so and the launchers are never
called. With TRITON_INTERPRET=1 the same kernels run on the CPU, slowly, which is how they are
tested where there is no GPU.
"""

from __future__ import annotations

import os
from functools import lru_cache

import torch
from torch import Tensor

try:
    import triton
except ImportError:
    triton = None


def interpreted() -> bool:
    """Whether kernels run on the CPU in Triton's interpreter; as it was when they were defined."""
    return _INTERPRETED


OLDEST = (3, 6)  # the oldest Triton whose compiled kernels were checked
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def missing() -> str | None:
    """Why no Triton kernel can run on this machine; None if one can."""
    if triton is None:
        return "triton is not installed; CUDA builds of torch bring it"
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return f"the kernels need triton {oldest} or later, got {triton.__version__}"
    if interpreted() or torch.cuda.is_available():
        return None
    return "no CUDA device was found"


@lru_cache
def stages(device: torch.device, wanted: int, size: int) -> int:
    """Stages of `size` bytes for a kernel: `wanted`, or fewer if the device has less memory."""
    if interpreted():
        return 1
    room = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    return max(1, min(wanted, room // size))


def refuse_device(*args: object) -> str | None:
    """Why these inputs are on the wrong device; None if they are where the kernels run."""
    kind = "cpu" if interpreted() else "cuda"
    for arg in args:
        if isinstance(arg, Tensor) and arg.device.type != kind:
            where = (
                "takes CPU tensors (TRITON_INTERPRET=1)" if interpreted() else "takes CUDA tensors"
            )
            return f"{where}, got {arg.device}"
    return None

"""Calls the CUDA C++ kernels of vlcal._C; the only file that passes CUDA pointers and streams.

Every function here takes contiguous CUDA tensors of the stated types on one device, allocates the
outputs there, and queues the kernels on the current stream of that device: nothing here waits for
them, and a CUDA graph can capture the call. The first call of a kernel loads it: warm up before
capturing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from vlcal import _native


def missing() -> str | None:
    """Why no CUDA C++ kernel can run on this machine; None if one can."""
    if why := not_built():
        return why
    return _problem() if torch.cuda.is_available() else "no CUDA device was found"


def not_built() -> str | None:
    """Why this installation holds no CUDA C++ kernels; None if it does."""
    if why := _native.missing():
        return why
    if hasattr(_native.library(), "cuda_problem"):
        return None
    return "the extension was built without CUDA kernels; VLCAL_CUDA=1 pip install . shows why"


@cache
def _problem() -> str | None:
    why = _native.library().cuda_problem()
    return f"the kernels, built with CUDA {toolkit()}, cannot run: {why}" if why else None


def architectures() -> list[str]:
    """Compute capabilities with machine code here ("80", "90a"); later ones start from PTX."""
    return [] if not_built() else _native.library().cuda_architectures.split()


def toolkit() -> str:
    """Version of the CUDA toolkit that built the kernels, "13.0"."""
    version = _native.library().cuda_toolkit
    return f"{version // 1000}.{version % 1000 // 10}"


def refuse_device(*args: object) -> str | None:
    """Why the kernels cannot take tensors from where these are; None if they can."""
    devices = {arg.device for arg in args if isinstance(arg, Tensor)}
    for device in devices:
        if device.type != "cuda":
            return f"takes CUDA tensors, got {device}"
        major, minor = torch.cuda.get_device_capability(device)
        lowest = min(int(arch.rstrip("af")) for arch in architectures())
        if 10 * major + minor < lowest:
            return (
                f"{device} has compute capability {major}.{minor}, the kernels were built for "
                f"{lowest // 10}.{lowest % 10} and later (VLCAL_CUDA_ARCHS)"
            )
    return None


@contextmanager
def launch_on(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Make the tensor's device the current one; gives its index and its current stream."""
    with torch.cuda.device(tensor.device):
        index = torch.cuda.current_device()
        yield index, torch.cuda.current_stream(index).cuda_stream

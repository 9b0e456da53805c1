"""Calls the CUDA C++ kernels of vlcal._C; the only file that passes CUDA pointers and streams.

They are written for compute capability 9.0 (Hopper) alone; the Triton kernels serve all others.

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

# kMostBins of csrc/cuda/binning.h
MOST_BINS = 48


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
        if (major, minor) != (9, 0):
            return f"needs compute capability 9.0, {device} has {major}.{minor}"
    return None


@contextmanager
def launch_on(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Make the tensor's device the current one; gives its index and its current stream."""
    with torch.cuda.device(tensor.device):
        index = torch.cuda.current_device()
        yield index, torch.cuda.current_stream(index).cuda_stream


def bin_statistics(
    confidence: Tensor, correct: Tensor, thresholds: Tensor
) -> tuple[Tensor, Tensor]:
    """Table [3, B] int64 of counts, correct ones and units of 2^-30; how many rows are bad, [1].

    Args:
        confidence: [N] float32.
        correct: [N] bool.
        thresholds: [B - 1] float32, B <= MOST_BINS.
    """
    n_bins = len(thresholds) + 1
    table = torch.zeros(3, n_bins, dtype=torch.int64, device=confidence.device)
    bad = torch.zeros(1, dtype=torch.int32, device=confidence.device)
    with launch_on(confidence) as launch:
        outputs = (thresholds.data_ptr(), n_bins, table.data_ptr(), bad.data_ptr())
        _native.library().bin_statistics_cuda(*_samples(confidence, correct), *outputs, *launch)
    return table, bad


def cell_sums(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """First pass of `equal_mass_statistics`: sums [2, cells] int64; how many rows are bad, [1]."""
    # one cell for every value of the 16 leading bits of the floats from 0 to 1
    sums = torch.zeros(2, 0x3F81, dtype=torch.int64, device=confidence.device)
    bad = torch.zeros(1, dtype=torch.int32, device=confidence.device)
    with launch_on(confidence) as launch:
        outputs = (sums.data_ptr(), bad.data_ptr())
        _native.library().cell_sums(*_samples(confidence, correct), *outputs, *launch)
    return sums, bad


def value_sums(confidence: Tensor, correct: Tensor, slot: Tensor, slots: int) -> Tensor:
    """Second pass: sums [slots, 2^16] int64 of the cells with slot [cells] int32 of 1 and more."""
    sums = torch.zeros(slots, 1 << 16, dtype=torch.int64, device=confidence.device)
    with launch_on(confidence) as launch:
        outputs = (slot.data_ptr(), sums.data_ptr())
        _native.library().value_sums(*_samples(confidence, correct), *outputs, *launch)
    return sums


def _samples(confidence: Tensor, correct: Tensor) -> tuple[int, int, int]:
    return confidence.data_ptr(), correct.data_ptr(), len(confidence)


def group_max(q16: Tensor, k16: Tensor, bias: Tensor) -> Tensor:
    """Largest q16 . k16 + bias of each 64 consecutive keys: [Q, ceil(V / 64)] float32.

    Args:
        q16: [Q, D] float16, D a multiple of 64.
        k16: [V, D] float16, V < 2^31 - 1024; rows may lie apart by a multiple of D.
        bias: [V] float32.
    """
    groups = -(-len(k16) // 64)
    out = torch.empty(len(q16), groups, dtype=torch.float32, device=q16.device)
    with launch_on(q16) as launch:
        _native.library().group_max(*_pairs(q16, k16, bias), out.data_ptr(), *launch)
    return out


def screen(
    q16: Tensor,
    k16: Tensor,
    bias: Tensor,
    floor: Tensor,
    capacity: int,
    gap: Tensor,
    rungs: Tensor,
    floors: Tensor,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys with q16 . k16 + bias >= floor: count [Q], entry and score [Q, capacity], in any order.

    Entry i stands for the keys i, i + 8, ..., i + 56 that exist, its score is the largest of
    theirs. Entries beyond the capacity are counted, not stored; what lies behind the count is not
    written. Floors rise in place: to floors[q, r] once `wanted` keys have been seen that score
    rungs[q, r] with their gap taken off.

    Args:
        q16: [Q, D] float16, D a multiple of 64.
        k16: [V, D] float16, V < 2^31 - 1024; rows may lie apart by a multiple of D.
        bias: [V] float32.
        floor: [Q] float32.
        capacity: length of the lists.
        gap: [ceil(V / 256)] float32, of each 256 keys.
        rungs: [Q, R] float32, ascending; R may be 0.
        floors: [Q, R] float32.
        wanted: at least 1.
    """
    count = torch.zeros(len(q16), dtype=torch.int32, device=q16.device)
    ids = torch.empty(len(q16), capacity, dtype=torch.int32, device=q16.device)
    score = torch.empty(len(q16), capacity, dtype=torch.float32, device=q16.device)
    seen = torch.zeros(rungs.shape, dtype=torch.int32, device=q16.device)
    lists = (floor.data_ptr(), capacity, *(part.data_ptr() for part in (count, ids, score)))
    ladder = (*(part.data_ptr() for part in (gap, rungs, floors, seen)), rungs.shape[1], wanted)
    with launch_on(q16) as launch:
        _native.library().screen(*_pairs(q16, k16, bias), *lists, *ladder, *launch)
    return count, ids, score


def _pairs(q16: Tensor, k16: Tensor, bias: Tensor) -> tuple[int, ...]:
    keys = (k16.data_ptr(), len(k16), k16.stride(0) if len(k16) > 1 else k16.shape[1])
    return (q16.data_ptr(), len(q16), *keys, k16.shape[1], bias.data_ptr())

"""What is timed on a GPU, and by which clock; a host's clock stands in where this is rehearsed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Call = Callable[[int], Any]
FLUSHED = 1 << 28  # bytes, several times an L2


class Run(NamedTuple):
    """One comparison, ready.

    Args:
        calls: what to time, by name: ours by the name of the backend. A call takes the number of
            the round and uses other inputs than in the round before.
        gate: raises AssertionError if a backend is wrong on a part of these inputs.
        missing: why a peer cannot run.
    """

    calls: dict[str, Call]
    gate: Callable[[str], None]
    missing: dict[str, str | None]


class Gpu:
    """Events around a call behind a cold L2, and the peak of torch's allocator."""

    device = "cuda"
    small = False

    def __init__(self) -> None:
        # peers in float32 multiply in float32
        torch.set_float32_matmul_precision("highest")
        self.flush = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name()

    def milliseconds(self, call: Call, i: int) -> float:
        self.flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call(i)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def peak_mib(self, call: Call) -> float:
        """MiB that a call takes above what was there; the calls before it warm up."""
        for i in range(3):
            call(i)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call(0)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def kernels(self, call: Call) -> str:
        """The longest kernels of one call and their milliseconds, by the profiler."""
        from torch.profiler import ProfilerActivity, profile

        call(0)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            call(1)
            torch.cuda.synchronize()
        taken = [(event.self_device_time_total, event.key) for event in profiled.key_averages()]
        taken.sort(reverse=True)
        longest = (f"{name[:60]} {each / 1e3:.3g}" for each, name in taken[:8])
        return f"{sum(each for each, _ in taken) / 1e3:.3g} ms of kernels: {'; '.join(longest)}"

    def wait(self) -> None:
        """Raises what went wrong on the device."""
        torch.cuda.synchronize()

    def tidy(self) -> None:
        """Gives the memory of what is gone back."""
        gc.collect()
        torch.cuda.empty_cache()


class Host:
    """What stands in for a GPU in a rehearsal: small workloads, interpreted; figures of nothing."""

    device = "cpu"
    small = True
    name = "rehearsal without a GPU"

    def milliseconds(self, call: Call, i: int) -> float:
        start = time.perf_counter()
        call(i)
        return (time.perf_counter() - start) * 1e3

    def peak_mib(self, call: Call) -> float:
        call(0)
        return 0.0

    def kernels(self, call: Call) -> str:
        call(0)
        return "no kernels on a host"

    def wait(self) -> None:
        pass

    def tidy(self) -> None:
        pass

"""Interleaved timing of alternatives, and the memory each of them needs at its peak."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import select
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from vlcal import _native

SHORTEST = 2e-3  # seconds a measurement lasts at least: short calls are repeated inside it
CHILD_SECONDS = 120


class Provider(NamedTuple):
    """One way to do the work of a benchmark; the first of a list is the one under test.

    Args:
        name: what the table says, e.g. "torchmetrics".
        run: does the work once, inputs bound.
        target: how many times slower than the one under test it is meant to be; never asserted.
        threads: for torch, faiss, BLAS and OpenMP alike.
        isa: limit of the native kernels, see `limit_isa`.
        missing: why it cannot run here.
        full: run with --full only.
        share: part of the work it does; its time is divided by that.
    """

    name: str
    run: Callable[[], Any]
    target: float | None = None
    threads: int = 1
    isa: str = "native"
    missing: str | None = None
    full: bool = False
    share: float = 1.0


class Timing(NamedTuple):
    """Seconds a call of one provider, and round by round its ratio to the one under test."""

    seconds: list[float]
    ratios: list[float]

    @property
    def p50(self) -> float:
        return statistics.median(self.seconds)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[round(share * (len(ordered) - 1))]


@functools.cache
def _controller() -> Any:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


def set_threads(threads: int) -> None:
    """One number for everybody: torch.set_num_threads does not bind faiss or numpy."""
    torch.set_num_threads(threads)
    if _controller() is not None:
        _controller().limit(limits=threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import faiss
        except ImportError:
            return
    faiss.omp_set_num_threads(threads)


@contextmanager
def settings(threads: int = 1, isa: str = "native") -> Iterator[None]:
    """Threads and instruction sets of one provider, for the length of a block."""
    before = torch.get_num_threads()
    set_threads(threads)
    if _native.missing() is None:
        _native.library().limit_isa(isa)
    try:
        yield
    finally:
        set_threads(before)
        if _native.missing() is None:
            _native.library().limit_isa("native")


def interleaved(providers: Sequence[Provider], seconds: float, rounds: int) -> list[Timing]:
    """Time A B C A B C ... for about `seconds`, at least `rounds` times, garbage collection off.

    Every provider has run before. The clock is `clock_of(providers)`.
    """
    clock = CLOCKS[clock_of(providers)]
    repeats = []
    for provider in providers:
        with settings(provider.threads, provider.isa):
            once = _time(provider.run, 1, clock)
        repeats.append(max(1, round(SHORTEST / max(once, 1e-9))))
    taken: list[list[float]] = [[] for _ in providers]
    start = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        while len(taken[0]) < rounds or time.perf_counter() - start < seconds:
            for provider, repeat, times in zip(providers, repeats, taken, strict=True):
                with settings(provider.threads, provider.isa):
                    times.append(_time(provider.run, repeat, clock) / provider.share)
    finally:
        gc.enable()
    return [
        Timing(times, [t / base for t, base in zip(times, taken[0], strict=True)])
        for times in taken
    ]


def clock_of(providers: Sequence[Provider]) -> str:
    """CPU time of the process if all have one thread: others on the machine cannot stretch it."""
    return "cpu" if all(provider.threads == 1 for provider in providers) else "wall"


CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def _time(run: Callable[[], Any], repeat: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeat):
        run()
    return max(clock() - start, 1e-9) / repeat


def once(provider: Provider) -> tuple[float, float | None]:
    """CPU seconds of one call, and its MiB as in `peak_mib`, for calls too long to repeat.

    The child makes no call before the one that counts, and takes as long as it needs.

    Raises:
        RuntimeError: the child gave no answer.
    """
    if not os.path.exists("/proc/self/clear_refs"):
        return _time(provider.run, 1, CLOCKS["cpu"]), None
    answer = _in_child(lambda: _seconds_and_growth(provider), None)
    if answer is None:
        raise RuntimeError(f"{provider.name}: the process that ran it once died without an answer")
    seconds, grown = answer.split()
    return float(seconds), float(grown)


def peak_mib(provider: Provider) -> float | None:
    """MiB above its inputs that one call needs: growth of the resident peak in a forked child.

    The child runs the call once, because pages of libraries count when they are first touched;
    then it gives freed memory back and resets the kernel's peak counter, so that neither the heap
    nor earlier peaks hide an allocation, and runs it again. It has one thread, because OpenMP pools
    do not survive a fork. None where this cannot be measured.
    """
    answer = _in_child(lambda: _second_growth(provider), CHILD_SECONDS)
    return None if answer is None else float(answer)


def _in_child(work: Callable[[], str], most_seconds: float | None) -> str | None:
    """What `work` answers in a forked child; None if it fails, takes too long or cannot be read."""
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        try:
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        if not select.select([reader], [], [], most_seconds)[0]:
            os.kill(child, signal.SIGKILL)
            return None
        return os.read(reader, 64).decode() or None
    finally:
        os.close(reader)
        os.waitpid(child, 0)


def _second_growth(provider: Provider) -> str:
    with settings(1, provider.isa):
        provider.run()
    return _seconds_and_growth(provider).split()[1]


def _seconds_and_growth(provider: Provider) -> str:
    with settings(1, provider.isa):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before, start = _status("VmRSS"), time.process_time()
        result = provider.run()
        seconds, grown = time.process_time() - start, _status("VmHWM") - before
        del result
    return f"{seconds:.3f} {max(grown, 0) / 1024:.2f}"


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ":"))

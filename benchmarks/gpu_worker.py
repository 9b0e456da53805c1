"""A process that measures GPU backends, started again if a kernel hangs or breaks the device."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.gpu_clock import Gpu, Host, Run
from benchmarks.gpu_plan import PLAN, Comparison
from benchmarks.gpu_rows import Row, row
from benchmarks.gpu_workloads import RUNS

ROUNDS = 20
SECONDS = 4.0  # for all rounds of one backend and its peers
LIMIT = 75.0  # seconds for that, and for inputs, compilers and the gate
SHORTEST = 5.0  # seconds in which nothing is begun
Clock = Gpu | Host
Task = tuple[str, int, str]  # a name of WORK, the number of a comparison, one of our backends


def answers(tasks: Sequence[Task], gpu: str, end: float) -> Iterator[tuple[Task, list[Row]]]:
    """The rows of each task for which there is time, as soon as it has ended."""
    worker = None
    for task in tasks:
        what, at, ours = task
        left = end - time.perf_counter()
        if left < SHORTEST:
            print(f"{name_of(at, ours)}: {what}: no time is left")
            continue
        worker = worker or Worker(gpu)
        try:
            rows, works = worker.ask(task, min(LIMIT, left))
        except (EOFError, OSError) as error:
            note = f"its process was ended: {note_of(error)}"
            print(f"{name_of(at, ours)}: {what}: {note}")
            # being cut by the end of all says nothing about a backend
            measures = what == "compare" and left >= LIMIT
            rows, works = noted(at, ours, gpu, note) if measures else [], False
        if not works:
            worker.stop()
            worker = None
        yield task, rows
    if worker:
        worker.stop()


class Worker:
    """Serves tasks; what breaks the device takes only this process along."""

    def __init__(self, gpu: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, gpu), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, task: Task, seconds: float) -> tuple[list[Row], bool]:
        """Its rows, and whether it can go on; EOFError if it dies, TimeoutError if it is late."""
        self.pipe.send(task)
        if not self.pipe.poll(seconds):
            raise TimeoutError(f"no answer in {seconds:.0f} s")
        return self.pipe.recv()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def serve(pipe: Any, gpu: str) -> None:
    """Answer tasks until nobody asks."""
    # a pool of compilers would work on beside what is timed
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    clock = Host() if gpu == Host.name else Gpu()
    while True:
        try:
            what, at, ours = pipe.recv()
        except EOFError:
            return
        try:
            rows = WORK[what](clock, at, ours, gpu)
        except Exception as error:
            traceback.print_exc()
            rows = noted(at, ours, gpu, note_of(error)) if what == "compare" else []
        pipe.send((rows, trouble(clock, clock.wait) is None))


def compare(clock: Clock, at: int, ours: str, gpu: str) -> list[Row]:
    """Rows of one of our backends beside each peer; what fails is noted there."""
    run, peers = made(clock, at), PLAN[at].peers
    if wrong := trouble(clock, lambda: run.gate(ours)):
        return noted(at, ours, gpu, f"not timed: {wrong}")
    notes = {
        peer.name: run.missing.get(peer.name)
        or trouble(clock, lambda name=peer.name: run.calls[name](0))
        for peer in peers
    }
    names = [ours, *(name for name, note in notes.items() if not note)]
    times, peaks = measured(clock, run, names)
    return [row(PLAN[at], ours, peer, gpu, notes[peer.name], times, peaks) for peer in peers]


def kernels(clock: Clock, at: int, ours: str, gpu: str) -> list[Row]:
    """No rows: says which kernels one call takes."""
    print(f"{name_of(at, ours)}: {clock.kernels(made(clock, at).calls[ours])}")
    return []


WORK: dict[str, Callable[[Clock, int, str, str], list[Row]]] = {
    "compare": compare,
    "kernels": kernels,
}


def made(clock: Clock, at: int) -> Run:
    workload = RUNS[PLAN[at].op, PLAN[at].workload]
    return workload.on(clock.device, clock.small)


def measured(
    clock: Clock, run: Run, names: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of every round, and the peak in MiB, of each of these calls."""
    peaks = {name: clock.peak_mib(run.calls[name]) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:  # the memory of a call was given back
        clock.milliseconds(run.calls[name], 1)
    start = time.perf_counter()
    for i in range(ROUNDS):
        for name in names:
            times[name].append(clock.milliseconds(run.calls[name], i))
        if i >= 4 and time.perf_counter() - start > SECONDS:
            break
    return times, peaks


def noted(at: int, ours: str, gpu: str, note: str) -> list[Row]:
    """Rows without figures."""
    return [row(PLAN[at], ours, peer, gpu, note) for peer in PLAN[at].peers]


def trouble(clock: Clock, call: Callable[[], Any]) -> str | None:
    """What a call raises, as a note: peers fail in ways of their own, and the table goes on."""
    try:
        call()
        clock.wait()
        clock.tidy()
    except Exception as error:
        traceback.print_exc()
        return note_of(error)
    return None


def note_of(error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}"[:160].replace("|", "/")


def name_of(at: int, ours: str) -> str:
    comparison: Comparison = PLAN[at]
    return f"{comparison.op} {comparison.workload}, {ours}"

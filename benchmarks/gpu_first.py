"""The first minutes on a machine with a GPU: what matters most comes first and is kept at once.

`python -m benchmarks.gpu_first FOLDER [STAGE...]` needs what is installed, and no network. Every
figure is appended to FOLDER/first.csv as soon as it is there, and to benchmarks/results. A stage
runs in a process of its own: what breaks the device, hangs or takes too long costs the item it was
at, which is noted, and nothing else. `--seconds` is when all must be over. `--rehearse` runs the
timed stages on a CPU, small and interpreted, with figures that mean nothing.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_plan import PLAN, Comparison, stored_rows, table, three
from benchmarks.rows import HERE, versions
from vlcal._files import write_atomic

COLUMNS = (
    *("stage", "item", "peer", "p20_ms", "p50_ms", "p80_ms", "peer_p50_ms"),
    *("ratio", "ratio_min", "ratio_max", "mib", "peer_mib", "note", "gpu", "versions", "command"),
)
ROUNDS, SECONDS = 20, 3.0  # of one of ours and a peer
FLUSHED = 1 << 28  # bytes, several times an L2
REPLAYED = 20  # launches of a kernel in one graph
# begun and not ended in so many seconds, an item is given up
ITEM_SECONDS = 40
Items = dict[str, Callable[[], Iterator[dict[str, Any]]]]


class Clock:
    """Milliseconds and MiB of calls: by events behind a flushed cache, or on the CPU's clock."""

    def __init__(self, rehearsed: bool) -> None:
        self.device = "cpu" if rehearsed else "cuda"
        torch.set_float32_matmul_precision("highest")
        self.flush = torch.empty(0 if rehearsed else FLUSHED, dtype=torch.uint8, device=self.device)

    def milliseconds(self, call: Callable[[], Any]) -> float:
        if self.device == "cpu":
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        self.flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def peak_mib(self, call: Callable[[], Any]) -> float:
        """Above what was there; the call has warmed up."""
        if self.device == "cpu":
            return 0.0
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def alone(self, launch: Callable[[], Any]) -> list[float]:
        """Milliseconds of a launch without the host: many in a graph that is replayed."""
        launch()
        if self.device == "cpu":
            return [self.milliseconds(launch)]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(REPLAYED):
                launch()
        graph.replay()
        return [self.milliseconds(graph.replay) / REPLAYED for _ in range(7)]


# ---- stages that time something: items by name, each gives rows


def ceilings(clock: Clock) -> Items:
    """What this card can do: memory, and products of fp16 at three shapes."""

    def moved(name: str) -> Iterator[dict[str, Any]]:
        source = torch.empty(
            1 << (16 if clock.device == "cpu" else 33), dtype=torch.uint8, device=clock.device
        )
        target = torch.empty_like(source)
        call = partial(target.copy_, source) if name == "copy" else source.view(torch.int64).sum
        size = len(source) * (2 if name == "copy" else 1)
        times = [clock.milliseconds(call) for _ in range(7)]
        yield {**quantiles(times), "note": f"{size / statistics.median(times) / 1e9:.3g} TB/s"}

    def multiplied(shape: tuple[int, int, int]) -> Iterator[dict[str, Any]]:
        n, m, k = shape if clock.device == "cuda" else (8, 8, 8)
        a = torch.randn(n, k, device=clock.device).half()
        b = torch.randn(m, k, device=clock.device).half()
        times = [clock.milliseconds(lambda: a @ b.T) for _ in range(7)]
        rate = 2 * n * m * k / statistics.median(times) / 1e9
        yield {**quantiles(times), "note": f"{rate:.0f} TFLOP/s"}

    shapes = ((8192, 8192, 8192), (1000, 1_000_000, 512), (10_000, 100_000, 512))
    return {name: partial(moved, name) for name in ("copy", "read")} | {
        f"fp16 {shape[0]} x {shape[1]} x {shape[2]}": partial(multiplied, shape) for shape in shapes
    }


def kernels(clock: Clock) -> Items:
    """Every Triton kernel of every workload alone, and the CUDA C++ kernels with their variants."""

    def of_triton(one: Comparison) -> Iterator[dict[str, Any]]:
        call, launches = one.run(clock.device).calls["triton"], []
        call(0)
        with recorded(launches):
            call(1)
        for name, launch in launches:
            yield {"peer": name, **quantiles(clock.alone(launch))}

    def of_screens() -> Iterator[dict[str, Any]]:
        from vlcal import _cuda

        q16 = torch.randn(1000, 512, device=clock.device).half()
        k16 = torch.randn(1_000_000, 512, device=clock.device).half()
        bias = torch.zeros(len(k16), device=clock.device)
        yield {
            "peer": "sample",
            **quantiles(clock.alone(lambda: _cuda.group_max(q16, k16[::16], bias))),
        }
        gap = bias.new_zeros(-(-len(k16) // 256))
        best = _cuda.group_max(q16, k16[::16], bias).topk(10).values
        rungs = best[:, [4, 1, 0]].contiguous()
        none = rungs[:, :0].contiguous()
        for name, floor, ladder in (
            ("screen, nothing reaches its floor", torch.full_like(best[:, 0], torch.inf), none),
            ("screen, floors stay", best[:, -1].contiguous(), none),
            ("screen, floors rise", best[:, -1].contiguous(), rungs),
        ):

            def launch(floor: Any = floor, ladder: Any = ladder) -> Any:
                # a copy, because floors rise
                return _cuda.screen(q16, k16, bias, floor.clone(), 1024, gap, ladder, ladder, 10)

            found = float(launch()[0].double().mean())
            yield {"peer": name, **quantiles(clock.alone(launch)), "note": f"{found:.0f} entries"}

    items: Items = {
        f"{one.op} {one.workload}, triton": partial(of_triton, one)
        for one in PLAN
        if "triton" in one.ours
    }
    return items if clock.device == "cpu" else {"screens in CUDA C++": of_screens, **items}


@contextmanager
def recorded(launches: list[tuple[str, Callable[[], Any]]]) -> Iterator[None]:
    """Append the name of each Triton kernel launched inside, and the same launch to repeat."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import KernelInterface

    def patched(original: Any, kernel: Any, grid: Any) -> Callable[..., Any]:
        def launch(*args: Any, **kwargs: Any) -> Any:
            again = partial(original(kernel, grid), *args, **kwargs)
            launches.append((kernel.fn.__name__, again))
            return again()

        return launch

    kinds = (KernelInterface, InterpretedFunction)
    originals = [kind.__dict__.get("__getitem__") for kind in kinds]
    for kind, original in zip(kinds, originals, strict=True):
        if original:
            kind.__getitem__ = lambda kernel, grid, original=original: patched(
                original, kernel, grid
            )
    try:
        yield
    finally:
        for kind, original in zip(kinds, originals, strict=True):
            if original:
                kind.__getitem__ = original


def compare(clock: Clock, extras: bool = False) -> Items:
    """Calls as users make them beside the strongest peer; `extras`: beside the others."""

    def beside(one: Comparison, backend: str, peers: list[str]) -> Iterator[dict[str, Any]]:
        run, wrong = one.run(clock.device), ""
        try:
            run.gate(backend)
        except AssertionError as error:
            wrong = f"WRONG: {' '.join(str(error).split())[:120]}"
        for peer in peers or ["-"]:
            calls = [run.calls[name] for name in (backend, peer) if name in run.calls]
            times: list[list[float]] = [[] for _ in calls]
            for call in calls:
                for i in range(3):
                    call(i)
            begun = time.perf_counter()
            for i in range(ROUNDS):
                for taken, call in zip(times, calls, strict=True):
                    taken.append(clock.milliseconds(partial(call, i)))
                if time.perf_counter() - begun > SECONDS:
                    break
            row = {"peer": peer, **quantiles(times[0]), "note": wrong}
            row["mib"], *theirs = (f"{clock.peak_mib(partial(call, 0)):.1f}" for call in calls)
            if theirs:
                row |= {"peer_p50_ms": three(statistics.median(times[1])), "peer_mib": theirs[0]}
                ratios = [their / our for our, their in zip(*times, strict=True)]
                limits = statistics.median(ratios), min(ratios), max(ratios)
                # how fast a wrong answer comes says nothing
                names = () if wrong else ("ratio", "ratio_min", "ratio_max")
                row |= {name: three(value) for name, value in zip(names, limits, strict=False)}
            yield row

    items: Items = {}
    for one in PLAN:
        for backend in one.ours:
            peers = list(one.peers)[1:] if extras else list(one.peers)[:1]
            if (peers or not extras) and not (
                clock.device == "cpu" and (backend == "cuda" or extras)
            ):
                items[f"{one.op} {one.workload}, {backend}"] = partial(beside, one, backend, peers)
    return items


TIMED: dict[str, Callable[[Clock], Items]] = {
    "ceilings": ceilings,
    "kernels": kernels,
    "compare": compare,
    "extras": partial(compare, extras=True),
}


def quantiles(times: list[float]) -> dict[str, str]:
    ordered = sorted(times)
    return {
        f"p{share}_ms": three(ordered[round(share / 100 * (len(ordered) - 1))])
        for share in (20, 50, 80)
    }


def work(stage: str, folder: Path, skipped: list[str], rehearsed: bool) -> None:
    """Run the items of a timed stage and append their rows; in a process of its own."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    for item, rows in TIMED[stage](Clock(rehearsed)).items():
        if item in skipped:
            continue
        print(f"begin {item}", flush=True)
        try:
            for row in rows():
                append(folder, {"stage": stage, "item": item, **row})
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            append(folder, {"stage": stage, "item": item, "note": said})
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # what broke the device ends this process
        if not rehearsed:
            torch.cuda.empty_cache()


def append(folder: Path, row: dict[str, Any]) -> None:
    """A row at the end of first.csv, shown and on the disk at once."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    used = [versions()]
    for name in ("triton", "liger-kernel", "cut-cross-entropy"):
        try:
            used.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    about = {"gpu": gpu, "versions": ", ".join(used)}
    row = {**about, "command": f"python -m benchmarks.gpu_first FOLDER {row['stage']}", **row}
    path = folder / "first.csv"
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        writer.writerow(row)
    shown = (row.get(name) for name in ("stage", "item", "peer", "p50_ms", "ratio", "note"))
    print(" | ".join(str(value) for value in shown if value), flush=True)


# ---- stages that are commands

TESTS = ["-q", "-rs", "-n", "0", "-W", "default", "-p", "no:cacheprovider"]
TESTS += ["-p", "benchmarks.gpu_tests"]
AGAINST = "tests/ops/test_against_reference.py"
# six processes at once; each stops at the first wrong element
SMOKE = {
    "cuda search": ("tests/ops/test_gpu_screens.py", "cuda and (maxima or lists_hold or rise)"),
    "cuda bins": ("tests/ops/test_cuda_binning.py", "same_integers"),
    "triton search": (AGAINST, "good and (knn-triton or rank_vocabulary-triton)"),
    "triton logits": (AGAINST, "good and (softmax-triton or logit_statistics-triton)"),
    "triton loss": (AGAINST, "good and cross_entropy-triton"),
    "triton bins": (AGAINST, "good and (statistics-triton or density-triton) and not logit"),
}
NO_GPU = "fake or emulated or certificate or launchers"  # what a CPU has proved already
BIG = "beyond or 32_bits"  # tests that take many GiB, which the workers do not all have


def commands(stage: str, folder: Path) -> dict[str, list[str]]:
    """The commands of a stage by name; those of a stage run at once."""
    pytest = [sys.executable, "-m", "pytest", *TESTS]
    if stage == "facts":
        about = "from vlcal import info; print(info.text(info.collect()))"
        query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit,memory.total"
        return {
            "nvidia-smi": ["nvidia-smi", query, "--format=csv"],
            "info": [sys.executable, "-c", about],
        }
    if stage == "build":
        return {"build": [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]}
    if stage == "smoke":
        return {name: [*pytest, "-x", path, "-k", k] for name, (path, k) in SMOKE.items()}
    if stage == "tests":
        chosen = f"(triton or cuda or gpu) and not ({NO_GPU}) and not ({BIG})"
        workers = ["-n", str(max(1, (os.cpu_count() or 1) - 4))]
        workers += ["--timeout", "40"] * bool(find_spec("pytest_timeout"))
        return {"tests": [*pytest, *workers, "tests/ops", "-k", chosen]}
    if stage == "sanitizers":
        sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
        small = ["tests/ops/test_gpu_screens.py", "tests/ops/test_cuda_binning.py", "-k"]
        chosen = "lists_count or apart or same_integers"
        return {
            tool: [*sanitizer, tool, *pytest, *small, chosen] for tool in ("memcheck", "synccheck")
        }
    metrics = (
        "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active,lts__t_bytes.sum.per_second"
    )
    profiler = [
        "ncu",
        "--clock-control",
        "none",
        "--launch-count",
        "40",
        "--metrics",
        metrics,
        "-k",
    ]
    chosen = "regex:score_kernel|walk|multiply|logit_gradients"
    # a profiler slows what it looks at: figures of that run stay apart
    apart = str(folder / "ncu")
    own = [sys.executable, "-m", "benchmarks.gpu_first", apart, "--work", "kernels"]
    return {"ncu": [*profiler, chosen, *own]}


# in this order, with seconds for each; sanitizers are for a second command on the warm machine
STAGES = {
    **{"facts": 15, "build": 100, "smoke": 60, "ceilings": 20, "kernels": 120, "compare": 120},
    **{"tests": 120, "ncu": 45, "extras": 35, "sanitizers": 90},
}
LAST = "sanitizers"


def run_commands(stage: str, folder: Path, seconds: float) -> None:
    started = {}
    for name, command in commands(stage, folder).items():
        if not shutil.which(command[0]):
            append(folder, {"stage": stage, "item": name, "note": f"{command[0]} is not installed"})
            continue
        log = (folder / f"{stage}.log").open("a")
        started[name] = start(command, log)
    end = time.perf_counter() + seconds
    for name, process in started.items():
        try:
            status: Any = process.wait(max(1.0, end - time.perf_counter()))
        except subprocess.TimeoutExpired:
            process.kill()
            status = f"stopped after {seconds:.0f} s"
        append(folder, {"stage": stage, "item": name, "note": f"status {status}"})
    found = re.findall(r"^(?:FAILED|ERROR|=+ .*(?:passed|failed).*).*", log_of(folder, stage), re.M)
    print("\n".join(line[:160] for line in found[-25:]))


def start(command: list[str], log: Any) -> subprocess.Popen:
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parent)


def log_of(folder: Path, stage: str) -> str:
    path = folder / f"{stage}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def run_timed(stage: str, folder: Path, seconds: float, rehearsed: bool) -> None:
    """Items in a process; what it was at when it ended or hung is left out, and it starts again."""
    end, skipped = time.perf_counter() + seconds, []
    while (left := end - time.perf_counter()) > 1:
        command = [sys.executable, "-m", "benchmarks.gpu_first", str(folder), "--work", stage]
        command += ["--rehearse"] * rehearsed + [f"--skip={name}" for name in skipped]
        log = folder / f"{stage}.log"
        with log.open("w") as file:
            process = start(command, file)
            status = watched(process, log, left)
        begun = re.findall(r"^begin (.*)", log_of(folder, stage), re.M)
        if status == 0 or not begun or time.perf_counter() > end - 1:
            break
        note = f"its process was ended: {status}"
        append(folder, {"stage": stage, "item": begun[-1], "note": note})
        skipped += begun
    print(log_of(folder, stage)[-3000:])


def watched(process: subprocess.Popen, log: Path, seconds: float) -> int | str:
    """The status of the process, or why it was stopped."""
    end, size, since = time.perf_counter() + seconds, 0, time.perf_counter()
    while process.poll() is None:
        time.sleep(0.2)
        now = time.perf_counter()
        if log.stat().st_size != size:
            size, since = log.stat().st_size, now
        if now > end or now - since > ITEM_SECONDS:
            process.kill()
            process.wait()
            return "no time was left" if now > end else f"nothing for {ITEM_SECONDS} s"
    return process.returncode


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_first")
    parser.add_argument("folder", type=Path)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; all but the last")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--work", choices=TIMED, help=argparse.SUPPRESS)
    parser.add_argument("--skip", action="append", default=[], help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.work:
        work(given.work, given.folder, given.skip, given.rehearse)
        return 0
    if given.rehearse:
        # read by Triton when the stages' processes import it
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print("gpu_first: nothing is measured: no CUDA device was found")
        return 1
    end = time.perf_counter() + given.seconds
    usual = [name for name in STAGES if name in TIMED or (not given.rehearse and name != LAST)]
    for stage in given.stages or usual:
        seconds = min(STAGES[stage], end - time.perf_counter() - 10)
        if seconds < 5:
            append(given.folder, {"stage": stage, "item": "-", "note": "no time is left"})
        elif stage in TIMED:
            run_timed(stage, given.folder, seconds, given.rehearse)
        else:
            run_commands(stage, given.folder, seconds)
    if not given.rehearse:
        keep(given.folder)
    return 0


def keep(folder: Path) -> None:
    """Into benchmarks/results, and the table of all that is there."""
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    results = HERE / "results" / f"{name}-torch{torch.__version__.split('+')[0]}.csv"
    shutil.copy(folder / "first.csv", results)
    write_atomic(HERE / "GPU.md", table(stored_rows()))
    shutil.copy(HERE / "GPU.md", folder)


if __name__ == "__main__":
    sys.exit(main())

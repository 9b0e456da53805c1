"""The first minutes on a machine with a GPU: what matters most comes first and is kept at once.

`python -m benchmarks.gpu_first FOLDER [STAGE...]` needs what is installed, and no network. Every
figure is appended to FOLDER/first.csv as soon as it is known; the file is copied to
benchmarks/results at the end. Each stage runs in its own process. If an item breaks the device or
hangs, that item is noted and the stage goes on with the next. All stages end within `--seconds`.
`--rehearse` runs the timed stages on a CPU with small inputs; those figures mean nothing.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_plan import stored_rows, table
from benchmarks.gpu_stages import TIMED, Clock
from benchmarks.rows import HERE, versions
from vlcal._files import write_atomic

COLUMNS = (
    *("stage", "item", "peer", "p20_ms", "p50_ms", "p80_ms", "peer_p50_ms"),
    *("ratio", "ratio_min", "ratio_max", "mib", "peer_mib", "note", "gpu", "versions", "command"),
)
# begun and not ended in so many seconds, an item is given up
ITEM_SECONDS = 40


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

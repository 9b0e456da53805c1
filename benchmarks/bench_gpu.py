"""Times the GPU backends beside their peers: `python -m benchmarks.bench_gpu`.

CUDA events around every call, warm-up, rounds in turn, inputs that change from round to round and a
cache flushed in between; the median and its spread, and what a call takes of memory. A backend is
timed after its gate only, and its rows are stored at once: what was measured stays. Without a GPU
it says so and measures nothing. `--rehearse FOLDER` runs all of it on a CPU, small and interpreted,
into that folder, with figures that mean nothing; `--table` writes GPU.md from the stored results.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu_clock import Host
from benchmarks.gpu_plan import PLAN
from benchmarks.gpu_rows import Row, results_file, save, spread, stored, table
from benchmarks.gpu_worker import Task, answers, name_of
from benchmarks.rows import HERE
from vlcal._files import write_atomic


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_gpu")
    parser.add_argument("--table", action="store_true", help="write GPU.md from stored results")
    parser.add_argument("-k", default="", help="only if 'op workload, backend' contains this")
    parser.add_argument("--seconds", type=float, default=300.0, help="for everything")
    parser.add_argument("--rehearse", type=Path, metavar="FOLDER", help="on a CPU, into FOLDER")
    given = parser.parse_args(arguments)
    if given.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
        measure(given.rehearse, given.rehearse, Host.name, given.k, given.seconds)
    elif given.table:
        write_atomic(HERE / "GPU.md", table(stored()))
    elif torch.cuda.is_available():
        gpu = torch.cuda.get_device_name()
        measure(HERE, HERE / "results", gpu, given.k, given.seconds)
    else:
        print("bench_gpu: nothing is measured: no CUDA device was found")
    return 0


def measure(folder: Path, results: Path, gpu: str, k: str, seconds: float) -> None:
    """Store rows and write GPU.md anew after every backend of every comparison."""
    end = time.perf_counter() + seconds
    chosen = [(at, ours) for at, one in enumerate(PLAN) for ours in one.ours]
    tasks: list[Task] = [("compare", *each) for each in chosen if k in name_of(*each)]
    timed = []
    for (_, at, ours), rows in answers(tasks, gpu, end):
        for row in rows:
            print(line(row))
        save(rows, results_file(results, gpu))
        write_atomic(folder / "GPU.md", table(stored(results)))
        if any(row["p50_ms"] for row in rows):
            timed.append(("kernels", at, ours))
    # what explains the times comes after all of them: a profiler slows later launches down
    for _ in answers(timed, gpu, end):
        pass


def line(row: Row) -> str:
    shown = [f"{row[name]} ms" for name in ("p50_ms", "peer_p50_ms") if row[name]]
    ratio = spread(row, "ratio", "ratio_min", "ratio_max")
    text = f"{row['op']} {row['workload']}, {row['ours']} and {row['peer']}: "
    return text + ", ".join([*shown, ratio, *([row["note"]] if row["note"] else [])])


if __name__ == "__main__":
    sys.exit(main())

"""Times the GPU backends beside their peers: `python -m benchmarks.bench_gpu`.

CUDA events around every call, warm-up, rounds in turn, inputs that change from round to round and a
cache flushed in between; the median and its spread, and what a call takes of memory. A backend is
timed after its gate only. Without a GPU it says so and measures nothing; `--table` writes GPU.md
from the stored results alone.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_plan import PLAN, Comparison, Peer
from benchmarks.gpu_workloads import RUNS, Run
from benchmarks.rows import HERE, versions
from vlcal._files import write_atomic

ROUNDS = 20
SECONDS = 6.0  # for all rounds of one workload
FLUSHED = 1 << 28  # bytes, several times an L2
COLUMNS = (
    *("op", "workload", "ours", "peer", "floor_ms", "predicted_ms"),
    *("p20_ms", "p50_ms", "p80_ms", "peer_p20_ms", "peer_p50_ms", "peer_p80_ms"),
    *("ratio", "ratio_min", "ratio_max", "reach", "aim", "peak_mib", "peer_peak_mib"),
    *("rounds", "gpu", "versions"),
)
Row = dict[str, str]
TABLE = HERE / "GPU.md"


def results_file() -> Path:
    """One file a GPU and torch release."""
    slug = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return HERE / "results" / f"{slug}-torch{torch.__version__.split('+')[0]}.csv"


def measured(run: Run, names: Sequence[str]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of every round, and the peak in MiB, of each of these calls."""
    peaks = {name: peak_mib(run.calls[name]) for name in names}
    flush = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for i in range(ROUNDS):
        for name in names:
            times[name].append(once(run.calls[name], i, flush))
        if i >= 4 and time.perf_counter() - start > SECONDS:
            break
    return times, peaks


def peak_mib(call: Callable[[int], Any]) -> float:
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


def once(call: Callable[[int], Any], i: int, flush: torch.Tensor) -> float:
    """Milliseconds of one call by the clock of the device, with a cold L2."""
    flush.zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call(i)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def compare(comparison: Comparison, say: Callable[[str], None]) -> list[Row]:
    """Rows of one workload: each of our backends beside each peer."""
    made = RUNS[comparison.op, comparison.workload]("cuda")
    ours = [name for name in comparison.ours if passed(made, name, say)]
    peers = [peer for peer in comparison.peers if runs(made, peer.name, say)]
    times, peaks = measured(made, [*ours, *(peer.name for peer in peers)])
    say(", ".join(f"{name} {statistics.median(taken):.3g} ms" for name, taken in times.items()))
    return [row(comparison, name, peer, times, peaks) for name in ours for peer in peers]


def passed(run: Run, backend: str, say: Callable[[str], None]) -> bool:
    """Whether the backend runs and is right; it is not timed otherwise."""
    try:
        run.gate(backend)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        say(f"NOT TIMED: {backend}: {error}")
        return False
    return True


def runs(run: Run, peer: str, say: Callable[[str], None]) -> bool:
    """Whether a peer is installed and takes these inputs."""
    try:
        if why := run.missing.get(peer):
            raise ImportError(why)
        run.calls[peer](0)
        torch.cuda.synchronize()
    except Exception as error:  # peers fail in ways of their own, and the table goes on without
        say(f"without {peer}: {type(error).__name__}: {str(error).splitlines()[0]}")
        return False
    return True


def row(
    comparison: Comparison,
    ours: str,
    peer: Peer,
    times: dict[str, list[float]],
    peaks: dict[str, float],
) -> Row:
    ratios = [b / a for a, b in zip(times[ours], times[peer.name], strict=True)]
    values: dict[str, Any] = {
        "op": comparison.op,
        "workload": comparison.workload,
        "ours": ours,
        "peer": peer.name,
        "floor_ms": three(comparison.floor_ms),
        "predicted_ms": three(comparison.ours[ours]),
        "ratio": three(statistics.median(ratios)),
        "ratio_min": three(min(ratios)),
        "ratio_max": three(max(ratios)),
        "reach": peer.reach,
        "aim": peer.aim,
        "peak_mib": f"{peaks[ours]:.1f}",
        "peer_peak_mib": f"{peaks[peer.name]:.1f}",
        "rounds": len(ratios),
        "gpu": torch.cuda.get_device_name(),
        "versions": versions(),
    }
    for prefix, name in (("", ours), ("peer_", peer.name)):
        ordered = sorted(times[name])
        for share in (20, 50, 80):
            at = round(share / 100 * (len(ordered) - 1))
            values[f"{prefix}p{share}_ms"] = three(ordered[at])
    return {name: "" if values[name] is None else str(values[name]) for name in COLUMNS}


def three(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(rows: Sequence[Row], path: Path) -> None:
    """Replace the rows of the same case in the file, keep the others."""
    kept = {case(row): row for row in [*load(path), *rows]}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept[name] for name in sorted(kept))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue())


def load(path: Path) -> list[Row]:
    """The rows of a file, if there is one and it is about a GPU."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if "floor_ms" in row]


def case(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in COLUMNS[:4])


def stored() -> list[Row]:
    """The rows of all results of GPUs."""
    return [row for path in sorted((HERE / "results").glob("*.csv")) for row in load(path)]


def table(rows: Sequence[Row]) -> str:
    """GPU.md: the plan, and beside it what was measured."""
    by_case: dict[tuple[str, ...], list[Row]] = {}
    for taken in rows:
        by_case.setdefault(case(taken), []).append(taken)
    lines = []
    for comparison in PLAN:
        for ours in comparison.ours:
            for peer in comparison.peers:
                key = (comparison.op, comparison.workload, ours, peer.name)
                lines += [line(comparison, ours, peer, one) for one in by_case.get(key, [None])]
    machines = sorted({f"{taken['gpu']}; {taken['versions']}" for taken in rows})
    notes = "\n".join(f"- {machine}" for machine in machines) or "- nothing was measured yet"
    return f"{HEAD}\n" + "\n".join(lines) + f"\n\nMeasured on:\n\n{notes}\n"


def line(comparison: Comparison, ours: str, peer: Peer, taken: Row | None) -> str:
    cells = [comparison.op, comparison.workload, ours, peer.name]
    cells += [f"{three(comparison.floor_ms)} ({comparison.floor})", three(comparison.ours[ours])]
    if taken is None:
        cells += ["not measured"] * 3
    else:
        cells.append(f"{taken['p50_ms']} ({taken['p20_ms']}..{taken['p80_ms']})")
        cells.append(f"{taken['peer_p50_ms']} ({taken['peer_p20_ms']}..{taken['peer_p80_ms']})")
        cells.append(f"{taken['ratio']} ({taken['ratio_min']}..{taken['ratio_max']})")
    cells += ["-" if value is None else f"{value:g}x" for value in (peer.reach, peer.aim)]
    cells.append(f"{taken['peak_mib']} / {taken['peer_peak_mib']}" if taken else "not measured")
    return f"| {' | '.join(cells)} |"


HEADINGS = (
    "op",
    "workload",
    "backend",
    "against",
    "floor, ms",
    "predicted, ms",
    "ms",
    "theirs, ms",
)
HEADINGS += ("times faster", "reach", "aim", "MiB / theirs")
HEAD = f"""# On a GPU

Floors are arithmetic for an H200 (790 TFLOP/s of fp16 products, 4.3 TB/s), predictions were written
down before the first measurement; both stand in `gpu_plan.py`. `benchmarks/gpu_check.sh` tests
everything and then fills this table: median and 20..80 % in milliseconds, ratios of the same
rounds, MiB above the inputs.

| {" | ".join(HEADINGS)} |
|{"---|" * len(HEADINGS)}"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_gpu")
    parser.add_argument("--table", action="store_true", help="write GPU.md from stored results")
    parser.add_argument("-k", default="", help="only workloads whose 'op workload' contains this")
    parser.add_argument("--seconds", type=float, default=200.0, help="start no workload after that")
    given = parser.parse_args(arguments)
    if not given.table and not torch.cuda.is_available():
        print("bench_gpu: nothing is measured: no CUDA device was found")
        return 0
    if not given.table:
        rows, start = [], time.perf_counter()
        for comparison in PLAN:
            name = f"{comparison.op} {comparison.workload}"
            if given.k not in name:
                continue
            if time.perf_counter() - start > given.seconds:
                print(f"{name}: NOT TIMED: {given.seconds:g} seconds are over")
                continue
            rows += compare(comparison, lambda text, name=name: print(f"{name}: {text}"))
            torch.cuda.empty_cache()
            # what was measured stays if a later workload fails
            save(rows, results_file())
    write_atomic(TABLE, table(stored()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

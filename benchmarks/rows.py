"""Rows of results: the machine in every row, the CSV file, the tables people read."""

from __future__ import annotations

import csv
import functools
import io
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from vlcal import _native
from vlcal._files import write_atomic

HERE = Path(__file__).parent
START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
KEY = ("op", "workload", "under_test", "provider", "threads", "isa")
COLUMNS = (
    *KEY,
    *("p20_ms", "p50_ms", "p80_ms", "ratio", "ratio_min", "ratio_max", "target", "rounds", "clock"),
    *("gops", "unit", "unit_peak", "peak_mib", "error", "machine", "versions", "command"),
)
PEERS = (
    *("torch", "numpy", "vlcal", "faiss-cpu", "torchmetrics", "netcal", "scikit-learn"),
    "statsmodels",
)

# of ops that are not bound by arithmetic, of rows on several threads, and of single workloads
REASONS = {
    "bin_statistics": "targets are of a core with twice this one's vector rate",
    "knn": "the four slices of the keys cost 15 % more than one pass over all",
    "sample_adaptive": "the ranges of two models take two products, each as long as the plain pass",
    "softmax_statistics": "torchmetrics varies from 34 to 66 ms with its pages; 100k rows reach it",
}

Row = dict[str, str]


@functools.cache
def machine() -> str:
    """CPU model, cores and instruction sets, e.g. "AMD EPYC 9655, 2 cores, portable avx2"."""
    facts = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    model = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts:
        model += f" family {facts['cpu family']} model {facts['model']}"
    return f"{model}, {os.cpu_count()} cores, {' '.join(_native.instruction_sets()) or 'no native'}"


@functools.cache
def versions() -> str:
    """Versions of everything that takes part, and the commit of this checkout."""
    found = []
    for name in PEERS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    describe = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return ", ".join([*found, f"commit {commit}"])


def results_file() -> Path:
    """One file a machine and torch release."""
    slug = re.sub(r"[^a-z0-9]+", "-", machine().split(",")[0].lower()).strip("-")
    return HERE / "results" / f"{slug}-torch{torch.__version__.split('+')[0]}.csv"


def save(rows: Iterable[Row], path: Path) -> list[Row]:
    """Replace the rows of the same case in the file, keep the others; all rows of the file."""
    kept = {key(row): row for row in load(path)}
    kept.update((key(row), row) for row in rows)
    ordered = [kept[name] for name in sorted(kept)]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(ordered)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue())
    return ordered


def load(path: Path) -> list[Row]:
    """The rows of a file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def key(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)


def markdown(rows: Iterable[Row]) -> str:
    """The comparisons as a table: how many times slower the other one is, round by round."""
    lines = [
        "| op | workload | against | times faster (min..max) | target | ms | theirs, ms "
        "| peak MiB | theirs | not reached because |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = list(rows)
    own = {(r["op"], r["workload"], r["under_test"]): r for r in rows if is_own(r)}
    for row in rows:
        if is_own(row):
            continue
        ours = own.get((row["op"], row["workload"], row["under_test"]), row)
        name = row["op"] if ours["provider"] == "vlcal" else f"{row['op']} ({ours['provider']})"
        ratio = f"{row['ratio']} ({row['ratio_min']}..{row['ratio_max']})"
        cells = [name, row["workload"], row["provider"], ratio, row["target"] or "-"]
        cells += [ours["p50_ms"], row["p50_ms"], ours["peak_mib"], row["peak_mib"]]
        cells.append(reason(ours, row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def reason(ours: Row, theirs: Row) -> str:
    """Why a target was not reached, from what the core can do; empty if it was."""
    if not theirs["target"] or float(theirs["ratio"]) >= float(theirs["target"]):
        return ""
    if named := REASONS.get(f"{theirs['op']}, {theirs['workload']}"):
        return named
    if not ours["gops"] or not ours["unit_peak"]:
        return REASONS.get(theirs["op"], "")
    done, most = float(ours["gops"]), float(ours["unit_peak"])
    needed = done * float(theirs["target"]) / float(theirs["ratio"])
    return (
        f"needs {needed:.0f} {ours['unit']} GOP/s, does {done:.0f}; the core's peak is {most:.0f}"
    )


def is_own(row: Row) -> bool:
    return row["provider"] == row["under_test"]


def update_readme(path: Path, rows: list[Row]) -> None:
    """Replace what stands between the two markers by the table of `rows`."""
    text = path.read_text()
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"update_readme: {path.name} needs the markers {START} and {END} once")
    machines = sorted({f"{row['machine']}; {row['versions']}" for row in rows})
    notes = "\n".join(f"- {line}" for line in machines)
    head, rest = text.split(START)
    table = f"{START}\n{markdown(rows)}\n\nMeasured on:\n\n{notes}\n{END}"
    write_atomic(path, head + table + rest.split(END)[1])

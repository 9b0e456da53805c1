"""Rows of GPU results: the CSV file of a GPU, and the table of GPU.md that people read."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_plan import PLAN, Comparison, Peer
from benchmarks.rows import HERE, versions
from vlcal._files import write_atomic

COLUMNS = (
    *("op", "workload", "ours", "peer", "floor_ms", "predicted_ms"),
    *("p20_ms", "p50_ms", "p80_ms", "peer_p20_ms", "peer_p50_ms", "peer_p80_ms"),
    *("ratio", "ratio_min", "ratio_max", "reach", "aim", "peak_mib", "peer_peak_mib"),
    *("rounds", "note", "gpu", "versions"),
)
LIBRARIES = ("triton", "liger-kernel", "cut-cross-entropy")
Row = dict[str, str]


def results_file(folder: Path, gpu: str) -> Path:
    """One file a GPU and torch release."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return folder / f"{slug}-torch{torch.__version__.split('+')[0]}.csv"


def row(
    comparison: Comparison,
    ours: str,
    peer: Peer,
    gpu: str,
    note: str | None = None,
    times: dict[str, list[float]] | None = None,
    peaks: dict[str, float] | None = None,
) -> Row:
    """What was measured of one of ours and one peer; a note says what was not, and why."""
    values: dict[str, Any] = dict.fromkeys(COLUMNS)
    values |= {
        "op": comparison.op,
        "workload": comparison.workload,
        "ours": ours,
        "peer": peer.name,
        "floor_ms": three(comparison.floor_ms),
        "predicted_ms": three(comparison.ours[ours]),
        "reach": peer.reach,
        "aim": peer.aim,
        "note": note,
        "gpu": gpu,
        "versions": used_versions(),
    }
    times, peaks = times or {}, peaks or {}
    for prefix, name in (("", ours), ("peer_", peer.name)):
        if name in times:
            values |= quantiles(prefix, times[name])
            values[f"{prefix}peak_mib"] = f"{peaks[name]:.1f}"
            values["rounds"] = len(times[name])
    if ours in times and peer.name in times:
        ratios = [b / a for a, b in zip(times[ours], times[peer.name], strict=True)]
        values["ratio"] = three(statistics.median(ratios))
        values |= {"ratio_min": three(min(ratios)), "ratio_max": three(max(ratios))}
    return {name: "" if values[name] is None else str(values[name]) for name in COLUMNS}


def used_versions() -> str:
    """Those of all rows, and of what only GPUs have."""
    found = [versions()]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def quantiles(prefix: str, taken: Sequence[float]) -> Row:
    ordered = sorted(taken)
    shares = (20, 50, 80)
    places = [round(share / 100 * (len(ordered) - 1)) for share in shares]
    return {
        f"{prefix}p{share}_ms": three(ordered[at]) for share, at in zip(shares, places, strict=True)
    }


def three(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(rows: Sequence[Row], path: Path) -> None:
    """Replace the rows of the same case in the file, keep the others.

    A peer that did not run leaves the figures that it once had.
    """
    kept = {case(row): row for row in load(path)}
    for new in rows:
        if new["peer_p50_ms"] or not new["p50_ms"] or case(new) not in kept:
            kept[case(new)] = new
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


def stored(folder: Path = HERE / "results") -> list[Row]:
    """The rows of all results of GPUs."""
    return [row for path in sorted(folder.glob("*.csv")) for row in load(path)]


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
                lines += [line(comparison, ours, peer, one) for one in by_case.get(key, [{}])]
    machines = sorted({f"{taken['gpu']}; {taken['versions']}" for taken in rows})
    notes = "\n".join(f"- {machine}" for machine in machines) or "- nothing was measured yet"
    return f"{HEAD}\n" + "\n".join(lines) + f"\n\nMeasured on:\n\n{notes}\n"


def line(comparison: Comparison, ours: str, peer: Peer, taken: Row) -> str:
    cells = [comparison.op, comparison.workload, ours, peer.name]
    cells += [f"{three(comparison.floor_ms)} ({comparison.floor})", three(comparison.ours[ours])]
    cells += [spread(taken, "p50_ms", "p20_ms", "p80_ms")]
    cells += [spread(taken, "peer_p50_ms", "peer_p20_ms", "peer_p80_ms")]
    cells += [spread(taken, "ratio", "ratio_min", "ratio_max")]
    cells += ["-" if value is None else f"{value:g}x" for value in (peer.reach, peer.aim)]
    peaks = [taken.get(name, "") for name in ("peak_mib", "peer_peak_mib")]
    cells.append(" / ".join(peak or "-" for peak in peaks) if any(peaks) else "not measured")
    cells.append(taken.get("note", ""))
    return f"| {' | '.join(cells)} |"


def spread(taken: Row, middle: str, low: str, high: str) -> str:
    if not taken.get(middle):
        return "not measured"
    return f"{taken[middle]} ({taken[low]}..{taken[high]})"


HEADINGS = (
    *("op", "workload", "backend", "against", "floor, ms", "predicted, ms", "ms", "theirs, ms"),
    *("times faster", "reach", "aim", "MiB / theirs", "note"),
)
HEAD = f"""# On a GPU

Floors are arithmetic for an H200 (790 TFLOP/s of fp16 products, 4.3 TB/s, 16 exponentials a clock
on each of 132 multiprocessors), predictions were written down before the first measurement; both
stand in `gpu_plan.py`. `benchmarks/gpu_check.sh` tests everything and then fills this table: median
and 20..80 % in milliseconds, ratios of the same rounds, MiB above the inputs. A call is timed as a
user makes it, checks and launches included.

| {" | ".join(HEADINGS)} |
|{"---|" * len(HEADINGS)}"""

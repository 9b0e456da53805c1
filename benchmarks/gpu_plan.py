"""What is compared on a GPU, what was expected before anything was measured, and the table of both.

Floors are arithmetic for an H200: 790 TFLOP/s of fp16 products and 4.3 TB/s from memory, as both
were measured on one such card before; 37 bytes a clock from the L2 to each of 132 multiprocessors
at 1.98 GHz (one public measurement), for the tiles of the kernel; 16 exponentials a clock. A
prediction says what one call will take. Neither is changed after a measurement.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import gpu_workloads as workloads
from benchmarks.gpu_workloads import Run
from benchmarks.rows import HERE

CLOCK = 132 * 1.98e9
FP16_FLOPS, BANDWIDTH, L2, EXPONENTIALS = 790e12, 4.3e12, 37 * CLOCK, 16 * CLOCK
Row = dict[str, str]


class Expected(NamedTuple):
    """Milliseconds of one of our variants: predicted, and what its tiles read from the L2."""

    predicted: float
    l2: float | None = None


class Comparison(NamedTuple):
    """One workload of one op.

    `make(*full, device)` or `make(*small, device)` gives the calls; no kernel of this kind can be
    faster than `floor` milliseconds, because of `why`; `ours` by backend; `peers`, the strongest
    first, with how many times faster we want to be; those behind the first run if time is left.
    """

    op: str
    workload: str
    make: Callable[..., Run]
    full: tuple[Any, ...]
    small: tuple[Any, ...]
    floor: float
    why: str
    ours: dict[str, Expected]
    peers: dict[str, float | None]

    def run(self, device: str) -> Run:
        return self.make(*(self.full if device == "cuda" else self.small), device)


def products(n: int, classes: int, dim: int, times: float = 1) -> float:
    """Milliseconds of `times` fp16 products [n, dim] x [dim, classes]."""
    return 2 * n * classes * dim * times / FP16_FLOPS * 1e3


def tiles(n: int, classes: int, dim: int, rows: int, columns: int, times: float = 1) -> float:
    """Milliseconds in which tiles of so many rows and columns read their operands from the L2."""
    return 2 * n * classes * dim * times * (1 / rows + 1 / columns) / L2 * 1e3


def memory(size: float) -> float:
    """Milliseconds that bytes take from memory once."""
    return size / BANDWIDTH * 1e3


ONE, MASS = "one fp16 product", "5 bytes a sample, twice"
FAST = {
    "torch bf16 mm + softmax + max": 2.5,
    "torch bf16 mm, our softmax_statistics": None,
    "torch.compile, bf16": 2.5,
}
LOSS = {
    "torch bf16 naive": 2,
    "Liger fused linear cross-entropy, bf16": 3,
    "cut-cross-entropy, bf16": 3,
}
TOPK = "torch fp16 mm + topk, inexact"
w = workloads
PLAN = (
    Comparison(
        "bin_statistics", "ECE of 1e8 confidences", w.ece, (100_000_000,), (3000,),
        memory(5e8), "5 bytes a sample", {"cuda": Expected(0.22), "triton": Expected(0.6)},
        {"torch.bincount": 5, "torchmetrics": 20},
    ),
    Comparison(
        "knn", "1000 in 1M, d=512, K=10", w.knn, (1000, 1_000_000, 512, 10), (5, 300, 64, 3),
        products(1000, 1_000_000, 512), ONE,
        # queries of the CUDA kernel stay in shared memory
        {
            "cuda": Expected(2.0, tiles(1000, 1_000_000, 512, 128, 1 << 30)),
            "triton": Expected(2.8, tiles(1000, 1_000_000, 512, 128, 256)),
        },
        {TOPK: 2, "torch fp32 mm + topk": 6},
    ),
    Comparison(
        "calibrated_softmax", "10k x 100k, fast", w.softmax,
        (10_000, 100_000, 512, "fast"), (3, 90, 16, "fast"),
        products(10_000, 100_000, 512), ONE,
        {"triton": Expected(3.4, tiles(10_000, 100_000, 512, 128, 128))}, FAST,
    ),
    Comparison(
        "cosine_cross_entropy", "32k x 32k, forward and backward, fast", w.loss,
        (32_768, 32_768, 512), (6, 30, 16),
        products(32_768, 32_768, 512, 3), "three fp16 products",
        {"triton": Expected(11, tiles(32_768, 32_768, 512, 128, 128, 4))}, LOSS,
    ),
    Comparison(
        "knn", "100 in 1M, d=512, K=10", w.knn, (100, 1_000_000, 512, 10), (2, 300, 64, 3),
        memory(1e6 * 512 * 2), "fp16 keys read once",
        {"cuda": Expected(0.5), "triton": Expected(0.6)}, {TOPK: None, "torch fp32 mm + topk": 4},
    ),
    Comparison(
        "calibrated_softmax", "50k x 1000, fast", w.softmax,
        (50_000, 1000, 512, "fast"), (6, 40, 16, "fast"),
        products(50_000, 1000, 512), ONE,
        {"triton": Expected(0.5, tiles(50_000, 1000, 512, 128, 128))}, FAST,
    ),
    Comparison(
        "calibrated_softmax", "10k x 100k, accurate", w.softmax,
        (10_000, 100_000, 512, "accurate"), (3, 90, 16, "accurate"),
        products(10_000, 100_000, 512, 3), "three fp16 products",
        {"triton": Expected(9, tiles(10_000, 100_000, 512, 128, 128, 2))}, {},
    ),
    Comparison(
        "classwise_statistics", "50k x 1000", w.classwise, (50_000, 1000), (60, 7),
        memory(50_000 * 1000 * 4), "4 bytes a probability", {"triton": Expected(0.35)},
        {"torch.bincount": None},
    ),
    Comparison(
        "equal_mass_statistics", "1e8 confidences, ties together", w.equal_mass,
        (100_000_000,), (3000,), memory(1e9), MASS, {"cuda": Expected(1.2)}, {"torch.sort": None},
    ),
    Comparison(
        "softmax_statistics", "50k x 1000", w.stored, (50_000, 1000), (60, 7),
        memory(50_000 * 1000 * 4), "4 bytes a logit", {"triton": Expected(0.18)},
        {"torch, all four": None},
    ),
    Comparison(
        "kernel_density", "100k under 100k points", w.density, (100_000, 100_000), (70, 300),
        1e10 / EXPONENTIALS * 1e3, "one exponential a pair",
        # 9.5 instructions a pair, 128 a clock
        {"triton": Expected(3.3)}, {"torch in blocks": 5},
    ),
)  # fmt: skip


def three(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def stored_rows(folder: Path = HERE / "results") -> list[Row]:
    """The comparisons in all results of GPUs."""
    found = []
    for path in sorted(folder.glob("nvidia-*.csv")):
        with path.open(newline="") as file:
            found += [row for row in csv.DictReader(file) if row["stage"] in ("compare", "extras")]
    return found


def table(rows: Sequence[Row]) -> str:
    """GPU.md: the plan, and beside it what was measured."""
    lines = []
    for one in PLAN:
        for backend, expected in one.ours.items():
            for peer, reach in (one.peers or {"-": None}).items():
                item = f"{one.op} {one.workload}, {backend}"
                taken = [row for row in rows if (row["item"], row["peer"]) == (item, peer)]
                l2 = "-" if expected.l2 is None else three(expected.l2)
                cells = [one.op, one.workload, backend, peer, f"{three(one.floor)} ({one.why})", l2]
                cells += [three(expected.predicted), "-" if reach is None else f"{reach:g}x"]
                lines += [f"| {' | '.join([*cells, *measured(row)])} |" for row in taken or [{}]]
    machines = sorted({f"{row['gpu']}; {row['versions']}" for row in rows})
    notes = "\n".join(f"- {machine}" for machine in machines) or "- nothing was measured yet"
    return f"{HEAD}\n" + "\n".join(lines) + f"\n\nMeasured on:\n\n{notes}\n"


def measured(row: Row) -> list[str]:
    if not row.get("p50_ms"):
        return ["not measured"] * 4 + [row.get("note", "")]
    ratio = f"{row['ratio']} ({row['ratio_min']}..{row['ratio_max']})" if row["ratio"] else "-"
    ours = f"{row['p50_ms']} ({row['p20_ms']}..{row['p80_ms']})"
    peaks = f"{row['mib']} / {row['peer_mib'] or '-'}"
    return [ours, row["peer_p50_ms"] or "-", ratio, peaks, row["note"]]


HEADINGS = (
    *("op", "workload", "backend", "against", "floor, ms", "L2 floor, ms", "predicted, ms"),
    *("goal", "ms", "theirs, ms", "times faster", "MiB / theirs", "note"),
)
HEAD = f"""# On a GPU

Floors are arithmetic for an H200 (790 TFLOP/s of fp16 products, 4.3 TB/s from memory; of kernels on
tensor cores also what their tiles read from the L2 at 37 bytes a clock and multiprocessor).
Predictions were written down before the first measurement. Both stand in `gpu_plan.py`.
`python -m benchmarks.gpu_first FOLDER` tests and measures on a machine with a GPU and then fills
this table: median and 20..80 % in milliseconds, ratios of the same rounds, MiB above the inputs. A
call is timed as a user makes it, checks and launches included.

| {" | ".join(HEADINGS)} |
|{"---|" * len(HEADINGS)}"""

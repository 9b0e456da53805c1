"""Every compat function beside the library it takes its name from, and our own default beside both.

    python -m benchmarks.agreement                          # prints the page
    python -m benchmarks.agreement --features FILE ...      # also on genuine data, .npz files
    python -m benchmarks.agreement --dac dac.py --write     # and writes results/agreement.md

The published code of DAC is no package: `--dac` takes a Python file, made from its repository, that
defines its names for a CPU. Without it those rows say what the tests say: agreement with values
recorded from it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.agreement_arrays import Data, bundled_icons, from_file, seeded
from benchmarks.agreement_lines import (
    Line,
    dac_lines,
    faiss_lines,
    netcal_lines,
    quiet,
    torchmetrics_lines,
)
from vlcal._files import write_atomic

RESULT = Path(__file__).parent / "results" / "agreement.md"
NOTES = """Notes:

- Sums here are exact (integers, in units of 2^-30); torchmetrics adds in float32.
- netcal's `TemperatureScaling` does not leave 1 where probabilities are float32: its optimizer sees
  no slope. Ours is fitted in float64.
- *ECE* of a calibrator is that of its probabilities, divided by their sum, under `standard`.
- Our `hb` closes bins on the right where netcal's closes them on the left to fit; rows without any
  probability keep the uncalibrated one in ours, are NaN in theirs and left out of their ECE.
- Our `mir` and `pb` take softmax once, the published code twice.
"""
LIBRARIES: tuple[tuple[str, str, str, Callable[[Data, Any], Iterator[Line]]], ...] = (
    ("torchmetrics", "torchmetrics", "torchmetrics", torchmetrics_lines),
    ("netcal", "netcal", "netcal", netcal_lines),
    ("faiss", "faiss", "faiss-cpu", faiss_lines),
)


def page(data: list[Data], files: list[str], dac: ModuleType | None) -> str:
    """The whole page; `files` are the names of those given as features."""
    command = " ".join(
        ["python -m benchmarks.agreement"]
        + (["--features", *files] if files else [])
        + ([] if dac is None else ["--dac dac.py"])
    )
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("numpy", "scipy", "scikit-learn", "torch")
    )
    head = __doc__.split("\n\n", 1)[0] if __doc__ else ""
    parts = [
        f"# Agreement\n\n{head}\n\n`{command}`, {versions}; *difference* is the largest "
        "between the original and the compat function, *our default* what `vlcal` gives by itself "
        "under the convention `standard`: other bins and other rules, so another number on purpose."
    ]
    for given in data:
        parts.append(f"## {given.name}: {given.about}")
        for title, module, package, compare in LIBRARIES:
            try:
                with quiet():
                    peer = importlib.import_module(module)
            except ImportError:
                parts.append(f"{title} is not installed: its rows are left out.")
                continue
            parts.append(
                table(f"{title} {importlib.metadata.version(package)}", compare(given, peer))
            )
        if dac is not None:
            parts.append(table("published code of DAC", dac_lines(given, dac)))
    if dac is None:
        parts.append(
            "The published code of DAC was not given (`--dac`): `tests/compat` compare with values "
            "recorded from it."
        )
    parts.append(NOTES.strip())
    return "\n\n".join(part for part in parts if part) + "\n"


def table(title: str, lines: Iterator[Line]) -> str:
    """Markdown, or nothing without lines."""
    rows = [
        f"| {line.what} | {line.original} | {line.ours} | {line.difference} | {line.default} |"
        for line in lines
    ]
    if not rows:
        return ""
    head = f"| {title} | original | compat | difference | our default |\n|---|---|---|---|---|"
    return "\n".join([head, *rows])


def module_of(path: Path) -> ModuleType:
    """The Python file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"agreement: --dac must be a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    with quiet():
        spec.loader.exec_module(module)
    return module


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement")
    parser.add_argument("--features", type=Path, nargs="*", default=[], metavar="FILE")
    parser.add_argument("--dac", type=Path, metavar="FILE")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = [seeded(), bundled_icons(), *map(from_file, args.features)]
    text = page(
        data,
        [path.name for path in args.features],
        None if args.dac is None else module_of(args.dac),
    )
    print(text)
    if args.write:
        write_atomic(RESULT, text)


if __name__ == "__main__":
    main()

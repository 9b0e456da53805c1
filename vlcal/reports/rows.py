"""Result rows: one dictionary per evaluated split, checked before anything is averaged or drawn."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vlcal.ops import BinStatistics

Row = Mapping[str, Any]

LARGEST_FILE = 256 * 2**20  # bytes
CELLS = "cells.jsonl"  # beside the rows: their outcomes in fine cells, by key
_TEXT = ("tuner", "calibrator", "split", "convention")
# what one tuner, and one calibrator, can be run with: rows that differ here are different lines
OF_TUNER = ("clip", "template", "shots", "recipe", "options", "views", "augmentation")
OF_TUNER += ("regularizers",)
OF_CALIBRATOR = ("calibrator_options",)
_log = logging.getLogger("vlcal")


def check_rows(rows: Sequence[Row], who: str) -> list[dict[str, Any]]:
    """The rows as dictionaries, or a ValueError that names the first row and field that is wrong.

    A row needs the texts tuner, calibrator, split and convention, and metrics: numbers or None by
    name.
    """
    if not rows:
        raise ValueError(f"{who}: needs at least one result row, got none")
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"{who}: row {i} must be an object, got {type(row).__name__}")
        for name in _TEXT:
            if not isinstance(row.get(name), str):
                raise ValueError(f"{who}: row {i}: {name} must be a text, got {row.get(name)!r}")
        metrics = row.get("metrics")
        if not isinstance(metrics, Mapping):
            raise ValueError(f"{who}: row {i}: metrics must be an object, got {metrics!r}")
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
                raise ValueError(
                    f"{who}: row {i}: metrics.{name} must be a number or null, got {value!r}"
                )
    return [dict(row) for row in rows]


def one_convention(rows: Sequence[Row], who: str) -> str:
    """The convention all rows share; numbers of two conventions are refused."""
    found = sorted({row["convention"] for row in rows})
    if len(found) != 1:
        raise ValueError(
            f"{who}: numbers of different conventions ({', '.join(found)}) cannot stand in one "
            "table; select the rows of one (--convention)"
        )
    return found[0]


def metric(row: Row, name: str) -> float | None:
    """The metric of a row, or None if it was not measured (absent, null or not finite)."""
    value = row["metrics"].get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def setting(row: Row) -> str:
    """Everything but the convention that identifies the numbers of a row, as sorted JSON."""
    names = ("dataset", "protocol", "seed", "split", "tuner", *OF_TUNER)
    names += ("calibrator", *OF_CALIBRATOR)
    return json.dumps([row.get(name) for name in names], sort_keys=True, default=str)


def row_bins(row: Row) -> BinStatistics | None:
    """The bin statistics stored in a row, or None if it has none."""
    stored = row.get("bins")
    if stored is None:
        return None
    try:
        count, correct = stored["count"], stored["correct"]
        sums = torch.tensor(stored["confidence"], dtype=torch.float64)
        # the fixed-point unit of BinStatistics, so sums written by it come back exactly
        table = torch.stack(
            [torch.tensor(count), torch.tensor(correct), (sums * 2.0**30).round().long()]
        )
        closed = stored["closed"]
    except (TypeError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            "row_bins: bins must hold count, confidence and correct, equally long, and closed: "
            f"{error}"
        ) from error
    good = table.dtype == torch.int64 and table.ndim == 2 and closed in ("right", "left")
    if not good or bool((table < 0).any()) or bool((table[1] > table[0]).any()):
        raise ValueError("row_bins: counts must be integers with 0 <= correct <= count per bin")
    edges = torch.linspace(0, 1, table.shape[1] + 1, dtype=torch.float64)
    return BinStatistics(table, edges, closed)


def read_rows(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a JSON-lines file and the number of unreadable lines (a killed run leaves one).

    Raises:
        FileNotFoundError: no such file.
        ValueError: no row at all, a line that is JSON but not a row, or a file above 256 MiB.
    """
    rows, torn = _read_lines(path, "read_rows")
    if not rows:
        raise ValueError(f"read_rows: {path} holds no result row")
    return check_rows(rows, f"read_rows: {path}"), torn


def with_cells(rows: Sequence[Row], path: str | Path) -> list[Row]:
    """The rows with what a file `cells.jsonl` beside theirs says of them; it may be absent."""
    beside = Path(path).with_name(CELLS)
    if not beside.is_file():
        return list(rows)
    if beside.stat().st_size > LARGEST_FILE:
        _log.warning("read_report: %s is too large, so some pictures are left out", beside)
        return list(rows)
    lines, _ = _read_lines(beside, "read_report")
    by_key = {line.get("key"): line.get("cells") for line in lines if isinstance(line, dict)}
    return [{**row, "cells": by_key.get(row.get("key"))} for row in rows]


def _read_lines(path: str | Path, who: str) -> tuple[list[Any], int]:
    """What the lines of a file hold, and the number of those that are not JSON."""
    found, torn = [], 0
    for number, line in enumerate(read_text(path, who).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            torn += 1
            _log.warning("%s: line %d of %s is not JSON and was left out", who, number, path)
    return found, torn


def read_text(path: str | Path, who: str) -> str:
    """The UTF-8 text of a file of at most 256 MiB, without a byte order mark."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{who}: no such file: {path}")
    if file.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{who}: {path} is larger than {LARGEST_FILE // 2**20} MiB")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{who}: {path} is not UTF-8 text: {error}") from error

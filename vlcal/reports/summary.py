"""Result rows averaged over seeds and datasets: a line per method, a cell per metric and split."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vlcal.reports.rows import (
    OF_CALIBRATOR,
    OF_TUNER,
    Row,
    check_rows,
    metric,
    one_convention,
    setting,
)

HIGHER_IS_BETTER = frozenset({"accuracy", "auroc"})
NO_DIRECTION = frozenset({"mean_confidence", "signed_gap"})
HARMONIC = frozenset({"accuracy"})  # joined over base and new by the harmonic mean


class Cell(NamedTuple):
    """Mean and sample standard deviation over seeds; None where there is nothing to take it of."""

    mean: float | None
    deviation: float | None = None


@dataclass(frozen=True)
class Line:
    """One tuner with one calibrator: cells by (metric, column)."""

    tuner: str
    calibrator: str
    cells: dict[tuple[str, str], Cell]


@dataclass(frozen=True)
class Summary:
    """Lines in the order of their first row; columns are the splits, then `H` or `mean`."""

    lines: tuple[Line, ...]
    metrics: tuple[str, ...]
    splits: tuple[str, ...]
    convention: str
    seeds: int
    datasets: tuple[str, ...]

    def columns(self, metric: str) -> tuple[str, ...]:
        """Column names of one metric; the last is the joint one if base and new were measured."""
        return (*self.splits, joint_name(metric)) if _both(self.splits) else self.splits


def joint_name(metric: str) -> str:
    """`H`, the harmonic mean, for accuracy; the plainly arithmetic `mean` for every error."""
    return "H" if metric in HARMONIC else "mean"


def summarize(rows: Sequence[Row], metrics: Sequence[str] = ("accuracy", "ece")) -> Summary:
    """Average result rows: over the seeds of a dataset first, then over datasets.

    `H` is the harmonic mean of the two averages (as in the base-to-new papers), not the average of
    harmonic means. Deviations are sample standard deviations over seeds of the dataset averages.

    Raises:
        ValueError: two conventions or protocols, two different rows for one setting, or tuners and
            calibrators that do not cover the same datasets.
    """
    rows = distinct_rows(check_rows(rows, "summarize"))
    convention = one_convention(rows, "summarize")
    protocols = sorted({str(row.get("protocol")) for row in rows})
    if len(protocols) > 1:
        raise ValueError(f"summarize: rows of one protocol at a time, got {', '.join(protocols)}")
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row, *names in zip(rows, tuner_labels(rows), calibrator_labels(rows), strict=True):
        groups[names[0], names[1]].append(row)
    splits = tuple(sorted({row["split"] for row in rows}, key=_split_order))
    lines = tuple(
        Line(tuner, calibrator, _cells(group, metrics, splits))
        for (tuner, calibrator), group in groups.items()
    )
    datasets = _same_datasets(groups, splits)
    seeds = len({row.get("seed") for row in rows})
    return Summary(lines, tuple(metrics), splits, convention, seeds, datasets)


def distinct_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows without repetitions; one setting with two different numbers is a ValueError."""
    kept: dict[str, Row] = {}
    for row in rows:
        key = setting(row) + row["convention"]
        if key in kept and kept[key]["metrics"] != row["metrics"]:
            raise ValueError(f"summarize: two rows with different numbers for {setting(row)}")
        kept.setdefault(key, row)
    return list(kept.values())


def tuner_labels(rows: Sequence[Row]) -> list[str]:
    """The tuner of every row, with what differs where one tuner was run in several ways."""
    return _labels(rows, "tuner", OF_TUNER)


def calibrator_labels(rows: Sequence[Row]) -> list[str]:
    """The calibrator of every row, with the options that differ."""
    return _labels(rows, "calibrator", OF_CALIBRATOR)


def _labels(rows: Sequence[Row], name: str, fields: Sequence[str]) -> list[str]:
    settings = [_flat(row, fields) for row in rows]
    found: dict[tuple[str, str], set[str | None]] = defaultdict(set)
    for key in sorted({key for each in settings for key in each}):
        for row, each in zip(rows, settings, strict=True):
            found[row[name], key].add(each.get(key))
    return [
        ", ".join(
            [row[name], *(f"{k} {v}" for k, v in each.items() if len(found[row[name], k]) > 1)]
        )
        for row, each in zip(rows, settings, strict=True)
    ]


def _flat(row: Row, fields: Sequence[str]) -> dict[str, str]:
    """The single settings within fields of a row, each under its own name."""
    flat: dict[str, str] = {}
    for name in fields:
        value = row.get(name)
        groups = value if isinstance(value, list) else [value]
        for group in groups:
            if not isinstance(group, Mapping):
                flat |= {} if group is None else {name: _plain(group)}
                continue
            for key, own in group.items():
                inner = own if isinstance(own, Mapping) else {key: own}
                flat |= {k: _plain(v) for k, v in inner.items()}
    return flat


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b), and 0 where either is 0."""
    return 2 * a * b / (a + b) if a > 0 and b > 0 else 0.0


def _cells(
    rows: Sequence[Row], metrics: Sequence[str], splits: tuple[str, ...]
) -> dict[tuple[str, str], Cell]:
    cells = {}
    for name in metrics:
        for split in splits:
            cells[name, split] = _average([r for r in rows if r["split"] == split], name)
        base, new = (cells[name, half].mean if half in splits else None for half in ("base", "new"))
        if _both(splits):
            joint = harmonic_mean if name in HARMONIC else lambda a, b: (a + b) / 2
            both = None if base is None or new is None else joint(base, new)
            cells[name, joint_name(name)] = Cell(both)
    return cells


def _average(rows: Sequence[Row], name: str) -> Cell:
    by_dataset: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        value = metric(row, name)
        if value is None:
            return Cell(None)
        by_dataset[str(row.get("dataset"))][str(row.get("seed"))] = value
    if not by_dataset:
        return Cell(None)
    mean = statistics.fmean(statistics.fmean(seeds.values()) for seeds in by_dataset.values())
    seeds = set.intersection(*(set(values) for values in by_dataset.values()))
    if len(seeds) < 2 or any(set(values) != seeds for values in by_dataset.values()):
        return Cell(mean)
    per_seed = [statistics.fmean(values[s] for values in by_dataset.values()) for s in seeds]
    return Cell(mean, statistics.stdev(per_seed))


def _same_datasets(
    groups: dict[tuple[str, str], list[Row]], splits: tuple[str, ...]
) -> tuple[str, ...]:
    every = sorted({str(row.get("dataset")) for group in groups.values() for row in group})
    for (tuner, calibrator), group in groups.items():
        for split in splits:
            has = {str(row.get("dataset")) for row in group if row["split"] == split}
            if has and (missing := [name for name in every if name not in has]):
                raise ValueError(
                    f"summarize: {tuner} with {calibrator} has no {split} row of "
                    f"{', '.join(missing)}; averages need the same datasets; "
                    "finish the runs or select datasets"
                )
    return tuple(every)


def _split_order(split: str) -> tuple[int, str]:
    return ({"base": 0, "new": 1}.get(split, 2), split)


def _both(splits: tuple[str, ...]) -> bool:
    return "base" in splits and "new" in splits


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)

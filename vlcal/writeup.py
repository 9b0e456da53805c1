"""From results to a report: the classes behind the numbers, and how the numbers came to be."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import torch

from vlcal import ops
from vlcal.experiment import Result
from vlcal.reports import ClassRow, Report, class_rows
from vlcal.types import Predictions

NEIGHBORS = 5  # of text proximity, as DAC counts them


def write_up(
    results: Sequence[Result],
    *,
    title: str,
    about: str,
    calibrator: str | None = "dac",
    facts: Mapping[str, str | int | float] | None = None,
) -> Report:
    """A report over the runs of one tuner: tables over all seeds, classes of the first run.

    Args:
        results: of `vlcal.experiment.run`, one per seed.
        title: of the page.
        about: one line that says what model and data these numbers are of.
        calibrator: shown beside the uncalibrated model in the per-class table.
        facts: shown before those that the rows tell.
    """
    first = results[0]
    tuner = first.measured[-1].row["tuner"]
    here = {"machine": machine(), "threads": torch.get_num_threads()}
    return Report.from_rows(
        [row for result in results for row in result.rows],
        title=title,
        about=about,
        classes=_classes(first, tuner, calibrator),
        class_titles=("none", calibrator or ""),
        facts={**(facts or {}), **here},
    )


def machine() -> str:
    """The processor and the system, without the name of the host."""
    return f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"


def _classes(result: Result, tuner: str, calibrator: str | None) -> list[ClassRow]:
    rows: list[ClassRow] = []
    base = result.find(tuner, "none", "base").predictions
    for split in result.task.tests:
        before = result.find(tuner, "none", split)
        after = None if calibrator is None else result.find(tuner, calibrator, split).evaluation
        names = before.predictions.class_names
        assert names is not None
        distance, nearest = _neighbors(before.predictions, base, split == "base")
        rows += class_rows(
            names,
            before.evaluation.outcomes,
            None if after is None else after.outcomes,
            base=split == "base",
            proximity=(-distance.mean(-1)).exp(),
            nearest=nearest,
        )
    return rows


def _neighbors(
    classes: Predictions, base: Predictions, same: bool
) -> tuple[torch.Tensor, list[str | None]]:
    """Distances [C, k] to the nearest base classes, a class itself left out, and the nearest."""
    names = base.class_names
    assert names is not None and classes.text_features is not None
    assert base.text_features is not None
    k = min(NEIGHBORS, len(names) - same)
    found = ops.knn(classes.text_features, base.text_features, k, exclude_self=same)
    return found.distance, [names[index] for index in found.index[:, 0].tolist()]

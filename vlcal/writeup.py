"""From results to a report: the classes behind the numbers, and how the numbers came to be."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vlcal import ops
from vlcal.evaluation import Evaluation
from vlcal.experiment import Result
from vlcal.metrics import convention as convention_named
from vlcal.metrics import image_proximity
from vlcal.reports import ClassRow, Report, cells, class_rows
from vlcal.reports.headline import display
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
    rows = [row for result in results for row in result.rows]
    # pictures are of the first seed, so only its rows carry cells
    with_cells = [{**each.row, **_cells(each.evaluation)} for each in first.measured]
    return Report.from_rows(
        [*with_cells, *rows[len(with_cells) :]],
        title=title,
        about=about,
        classes=_classes(first, tuner, calibrator),
        class_titles=("none", calibrator or ""),
        facts={**(facts or {}), **here},
    )


def write_up_arrays(
    found: Mapping[str, Evaluation],
    *,
    title: str,
    about: str = "",
    names: Sequence[str] | None = None,
    facts: Mapping[str, str | int | float] | None = None,
    seconds: Mapping[str, float] | None = None,
    test: Predictions | None = None,
    base: Predictions | None = None,
) -> Report:
    """A report over evaluations of the same images, without and with calibrators.

    Args:
        found: by name of the calibrator, "none" first.
        title: of the page.
        about: one line that says what these numbers are of.
        names: C class names; their numbers by default.
        facts: shown before those that the rows tell.
        seconds: what fitting and applying took, by name.
        test: the predictions that were measured; with `base`, classes get a proximity.
        base: the predictions that were fitted on.
    """
    rows = []
    for name, each in found.items():
        about_row = {"tuner": "given", "calibrator": name, "split": "test"}
        took = {"seconds": seconds[name]} if seconds and name in seconds else {}
        rows.append({**about_row, **took, **each.to_dict(), **_cells(each)})
    classes, after = _given_classes(found, names, test, base)
    first = next(iter(found.values()))
    why = f"{after}, the lowest ECE of those that keep every prediction"
    shown = {"classes are shown after": why} if after and len(found) > 2 else {}
    return Report.from_rows(
        rows,
        title=title,
        about=about or f"{first.n:,} rows of arrays that were given.",
        classes=classes,
        class_titles=("none", after or ""),
        facts={**(facts or {}), **shown, **_notes(found), "machine": machine()},
    )


def near_images(
    images: torch.Tensor | None, hold_out: torch.Tensor | None, convention: str
) -> torch.Tensor | None:
    """Proximity [N] of images to hold-out images as a convention takes it; None without either."""
    if images is None or hold_out is None:
        return None
    if images.shape[1] != hold_out.shape[1]:
        raise ValueError(
            "proximity: image features and those of validation images must agree in D, got "
            f"{images.shape[1]} and {hold_out.shape[1]}"
        )
    k = min(convention_named(convention).neighbors, len(hold_out))
    return image_proximity(images, hold_out, convention, k=k)


def machine() -> str:
    """The processor and the system, without the name of the host."""
    return f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"


def _notes(found: Mapping[str, Evaluation]) -> dict[str, str]:
    """What readers of the numbers have to know, by calibrator."""
    return {f"note on {display(name)}": "; ".join(e.notes) for name, e in found.items() if e.notes}


def _cells(evaluation: Evaluation) -> dict[str, Any]:
    """The fine cells of a row; none where a confidence is not a number."""
    found = cells.of_row(evaluation.outcomes, evaluation.bins.closed)
    return {} if found is None else {"cells": found}


def _classes(result: Result, tuner: str, calibrator: str | None) -> list[ClassRow]:
    rows: list[ClassRow] = []
    base = result.find(tuner, "none", "base").predictions
    for split in result.task.tests:
        before = result.find(tuner, "none", split)
        after = _after(result, tuner, calibrator, split)
        names = before.predictions.class_names
        assert names is not None
        distance, nearest = _neighbors(before.predictions, base, split == "base")
        rows += class_rows(
            names,
            before.evaluation.outcomes,
            after.outcomes if after is not None and _agree(before.evaluation, after) else None,
            base=split == "base",
            proximity=(-distance.mean(-1)).exp(),
            nearest=nearest,
        )
    return rows


def _after(result: Result, tuner: str, calibrator: str | None, split: str) -> Evaluation | None:
    """The calibrated model on a split; None where the calibrator knows only other classes."""
    measured = {(m.row["tuner"], m.row["calibrator"], m.row["split"]): m for m in result.measured}
    found = None if calibrator is None else measured.get((tuner, calibrator, split))
    return None if found is None else found.evaluation


def _agree(before: Evaluation, after: Evaluation) -> bool:
    """Whether both predict the same classes, so that a class is the same images on both sides."""
    one, two = before.outcomes.predicted, after.outcomes.predicted
    return one is not None and two is not None and torch.equal(one, two)


def _given_classes(
    found: Mapping[str, Evaluation],
    names: Sequence[str] | None,
    test: Predictions | None,
    base: Predictions | None,
) -> tuple[list[ClassRow], str | None]:
    """Class rows before and after a calibrator, and its name.

    It is the one with the lowest ECE of those that keep every prediction.
    """
    before = next(iter(found.values()))
    if before.n_classes is None or before.outcomes.predicted is None:
        return [], None
    if names is not None and len(names) != before.n_classes:
        raise ValueError(
            f"--classes must hold {before.n_classes} names, one per class, got {len(names)}"
        )
    names = names or [f"class {label}" for label in range(before.n_classes)]
    keeping = [name for name, each in found.items() if each is not before and _agree(before, each)]
    after = min(keeping, key=lambda name: found[name].metrics.get("ece", math.inf), default=None)
    halves, proximity, nearest = _halves(names, test, base)
    rows = class_rows(
        names,
        before.outcomes,
        None if after is None else found[after].outcomes,
        base=halves,
        proximity=proximity,
        nearest=nearest,
    )
    return rows, after


def _halves(
    names: Sequence[str], test: Predictions | None, base: Predictions | None
) -> tuple[list[bool] | None, torch.Tensor | None, list[str | None] | None]:
    """Which classes were fitted on, and how near each is to those, where names and texts tell."""
    if test is None or base is None or test.class_names is None or base.class_names is None:
        return None, None, None
    known = set(base.class_names)
    halves = [name in known for name in names]
    text, base_text = test.text_features, base.text_features
    same = test.class_names == base.class_names
    if text is None or base_text is None or text.shape[1] != base_text.shape[1]:
        return halves, None, None
    if same and len(names) < 2:
        return halves, None, None
    distance, nearest = _neighbors(test, base, same)
    return halves, (-distance.mean(-1)).exp(), nearest


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

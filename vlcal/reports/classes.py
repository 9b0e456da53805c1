"""Per-class rows: how confident a model is when it predicts a class, and how often right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlcal.metrics import class_table
from vlcal.types import Outcomes


@dataclass(frozen=True)
class ClassRow:
    """One class as a prediction: the images predicted as it, before and after a calibrator.

    The calibrator must keep predictions, so that both sides speak about the same images.

    Args:
        name: the class name, shown as given.
        base: whether it was tuned on; None where classes are not in halves.
        n: images predicted as this class.
        accuracy: share of them that are of this class.
        before: their mean confidence without calibration.
        after: their mean confidence after it, or None.
        proximity: of the class to the base classes, in (0, 1], or None.
        nearest: name of the nearest base class, or None.
    """

    name: str
    base: bool | None
    n: int
    accuracy: float
    before: float
    after: float | None = None
    proximity: float | None = None
    nearest: str | None = None

    @property
    def gap(self) -> float:
        """Mean confidence minus accuracy before calibration."""
        return self.before - self.accuracy

    @property
    def gap_after(self) -> float | None:
        """Mean confidence minus accuracy after calibration."""
        return None if self.after is None else self.after - self.accuracy


def class_rows(
    names: Sequence[str],
    before: Outcomes,
    after: Outcomes | None = None,
    *,
    base: bool | Sequence[bool] | None,
    proximity: Tensor | None = None,
    nearest: Sequence[str | None] | None = None,
) -> list[ClassRow]:
    """One row per class that was predicted at least once, in label order.

    Args:
        names: C class names.
        before: outcomes with `predicted`.
        after: outcomes of the same images after a calibrator that keeps predictions.
        base: one answer for all classes, or C; None where classes are not in halves.
        proximity: [C], of each class to the base classes.
        nearest: C names of nearest base classes.

    Raises:
        ValueError: `predicted` is missing, or differs between `before` and `after`.
    """
    if before.predicted is None:
        raise ValueError("class_rows: outcomes must hold predicted classes, got None")
    if after is not None and (
        after.predicted is None or not torch.equal(after.predicted, before.predicted)
    ):
        raise ValueError("class_rows: before and after must predict the same classes")
    halves = list(base) if isinstance(base, Sequence) else [base] * len(names)
    old = class_table(before, len(names))
    new = None if after is None else class_table(after, len(names)).confidence
    return [
        ClassRow(
            name=name,
            base=halves[label],
            n=int(old.count[label]),
            accuracy=float(old.accuracy[label]),
            before=float(old.confidence[label]),
            after=None if new is None else float(new[label]),
            proximity=None if proximity is None else float(proximity[label]),
            nearest=None if nearest is None else nearest[label],
        )
        for label, name in enumerate(names)
        if old.count[label] > 0
    ]


def worst_first(rows: Sequence[ClassRow]) -> list[ClassRow]:
    """Rows by their part in the error, n |gap|, largest first.

    A class predicted twice does not lead by bad luck.
    """
    return sorted(rows, key=lambda row: (-row.n * abs(row.gap), row.name))

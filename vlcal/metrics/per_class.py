"""One row per predicted class: how often it is predicted, how sure, how right."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlcal.metrics.needs import need
from vlcal.ops import group_statistics
from vlcal.types import Outcomes


class ClassTable(NamedTuple):
    """Columns over the classes, all [C]; means of a class that is never predicted are NaN.

    `count` predictions, mean `confidence`, `accuracy` among them (the precision of the class), and
    the signed `gap`, confidence minus accuracy: positive is over-confident.
    """

    count: Tensor
    confidence: Tensor
    accuracy: Tensor
    gap: Tensor


def class_table(outcomes: Outcomes, n_classes: int) -> ClassTable:
    """Calibration of every predicted class.

    Args:
        outcomes: with `predicted`.
        n_classes: C.

    Raises:
        MissingInput: the outcomes carry no predicted classes.
    """
    predicted = need("class_table", outcomes, "predicted")
    sums = group_statistics(predicted, outcomes.confidence, outcomes.correct, n_classes)
    count = sums.count.double()
    confidence, right = sums.confidence / count, sums.correct / count
    return ClassTable(sums.count, confidence, right, torch.where(count > 0, sums.gaps(), torch.nan))

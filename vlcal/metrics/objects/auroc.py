"""AUROC of confidence, as an object over a fixed grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlcal.metrics.objects.declared import DeclaredMetric, Input, NotFinite


class ConfidenceAUROC(DeclaredMetric):
    """How well confidence tells correct from wrong: AUROC with correct predictions as positives.

    An exact AUROC needs every confidence. This one counts them in a fixed grid of 47,108 cells,
    finer than 1/1024 of the confidence below one half and of its distance to 1 above it, and gives
    half a point to a pair of one cell, as to a tie. `bounds` holds the exact value for certain.

    The state is a table [2, 47108] of integers, 754 KB.

    Args:
        input: what `preds` holds: "logits" or "probs".
        nan: samples with NaN or an infinity: "error", "drop" or "propagate".
        validate: False trusts the sums of probabilities and the range of logits.
        options: of `torchmetrics.Metric`.
    """

    higher_is_better = True
    table: Tensor

    def __init__(
        self,
        input: Input,
        *,
        nan: NotFinite = "error",
        validate: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(input, "confidence grid", nan=nan, validate=validate, **options)
        self._add_sums("table", 2, 2 * _HALF)

    def bounds(self) -> tuple[float, float]:
        """The least and the largest AUROC that the samples of all processes can have.

        Raises:
            NoSamplesError: nothing was counted.
        """
        with self._synced() as states:
            self._check(states)
            value = self._value(states)
            pairs, _, tied = self._pairs(states["table"])
        reach = tied / 2 / pairs if pairs else math.nan
        return value - reach, value + reach

    def _count(self, values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        seen = self._seen(values, labels)
        cell = grid_cell(seen.confidence) + 2 * _HALF * seen.correct
        return {"table": torch.bincount(cell, minlength=4 * _HALF).view(2, -1)}

    def _n(self, states: Mapping[str, Tensor]) -> int:
        return int(states["table"].sum())

    def _measure(self, states: Mapping[str, Tensor]) -> float:
        pairs, won, tied = self._pairs(states["table"])
        return (won + tied / 2) / pairs if pairs else math.nan

    def _pairs(self, table: Tensor) -> tuple[int, int, int]:
        """Pairs of a correct and a wrong one: all, those in order, those in one cell."""
        wrong, right = table.cpu()
        below = wrong.cumsum(0) - wrong
        won, tied = int((right * below).sum()), int((right * wrong).sum())
        return int(right.sum()) * int(wrong.sum()), won, tied


# cells of confidences below one half: exponents -24..-2 with ten bits of fraction, 0, one half
_HALF = 23 * 1024 + 2


def grid_cell(confidence: Tensor) -> Tensor:
    """Cell of each confidence in 0..1, ascending with it; the upper half mirrors the lower one."""
    rounded = confidence.float()
    upper = rounded >= 0.5
    distance = torch.where(upper, 1 - rounded, rounded).contiguous()
    # the bits of positive floats ascend with them
    key = (distance.view(torch.int32) >> 13) - (103 << 10) + 1
    key = key.clamp(min=0).long()
    return torch.where(upper, 2 * _HALF - 1 - key, key)

"""Class-wise calibration error, as an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlcal.metrics.conventions import Convention
from vlcal.metrics.conventions import convention as named
from vlcal.metrics.objects.declared import DeclaredMetric, Input, NotFinite, Result
from vlcal.ops import ClasswiseStatistics, classwise_statistics
from vlcal.ops.binning import equal_edges


class ClasswiseCalibrationError(DeclaredMetric):
    """Class-wise ECE: for each class the ECE of its probability, averaged over the classes.

    The state is a table [3, C, B] of integers. Static calibration error of Nixon et al., CVPR
    Workshops 2019; Kull et al., NeurIPS 2019.

    Args:
        input: what `preds` holds: "logits" or "probs".
        n_classes: C.
        convention: whose bins; a name of `vlcal.metrics.CONVENTIONS` or a `Convention`.
        nan: samples with NaN or an infinity: "error", "drop" or "propagate".
        validate: False trusts the sums of probabilities and the range of logits.
        options: of `torchmetrics.Metric`.

    Raises:
        ValueError: an option is not one of those above.
    """

    table: Tensor

    def __init__(
        self,
        input: Input,
        n_classes: int,
        *,
        convention: str | Convention = "standard",
        nan: NotFinite = "error",
        validate: bool = True,
        **options: Any,
    ) -> None:
        rule = named(convention)
        counted = ("class-wise", rule.closed, rule.n_bins, n_classes)
        super().__init__(input, counted, nan=nan, validate=validate, **options)
        if isinstance(n_classes, bool) or not isinstance(n_classes, int) or n_classes < 1:
            self._refuse(f"n_classes must be an integer >= 1, got {n_classes!r}")
        self.n_classes, self.convention = n_classes, rule
        self._add_sums("table", 3, n_classes, rule.n_bins)

    def _count(self, values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if values.shape[1] != self.n_classes:
            self._refuse(f"preds must have {self.n_classes} classes, got {values.shape[1]}")
        if self.input == "logits":
            wide = torch.promote_types(values.dtype, torch.float32)
            values = values.to(wide).softmax(-1).clamp(max=1)
        rule = self.convention
        return {
            "table": classwise_statistics(values, labels, rule.n_bins, closed=rule.closed).table
        }

    def _n(self, states: Mapping[str, Tensor]) -> int:
        return int(states["table"][0, 0].sum())

    def _bins(self, table: Tensor) -> ClasswiseStatistics:
        edges = equal_edges(type(self).__name__, self.convention.n_bins)
        return ClasswiseStatistics(table.cpu(), edges, self.convention.closed)

    def _measure(self, states: Mapping[str, Tensor]) -> float:
        return float(self._bins(states["table"]).errors().mean())

    def _result(self, states: Mapping[str, Tensor]) -> Result:
        value, n, dropped = self._value(states), self._n(states), int(states["dropped"])
        return Result(value, n, dropped, self.convention, self._bins(states["table"]))

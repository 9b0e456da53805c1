"""Class-wise calibration error, as an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlcal.metrics.binned import edges_of
from vlcal.metrics.classwise_bins import Classwise, classwise, classwise_of_probs
from vlcal.metrics.conventions import Convention
from vlcal.metrics.conventions import convention as named
from vlcal.metrics.objects.declared import DeclaredMetric, Input, NotFinite, Result
from vlcal.ops import ClasswiseStatistics
from vlcal.types import Predictions


class ClasswiseCalibrationError(DeclaredMetric):
    """Class-wise ECE: for each class the ECE of its probability, averaged over the classes.

    The state is a table [3, C, B] of integers and one of [3, C, 3]. Static calibration error of
    Nixon et al., CVPR Workshops 2019; Kull et al., NeurIPS 2019.

    Args:
        input: what `preds` holds: "logits" or "probs".
        n_classes: C.
        metric: "classwise_ece", or "classwise_ece_thresholded" over probabilities above 0.001.
        convention: whose bins; a name of `vlcal.metrics.CONVENTIONS` or a `Convention`.
        nan: samples with NaN or an infinity: "error", "drop" or "propagate".
        validate: False trusts the sums of probabilities and the range of logits.
        options: of `torchmetrics.Metric`.

    Raises:
        ValueError: an option is not one of those above.
    """

    table: Tensor
    low: Tensor
    largest_label: Tensor

    def __init__(
        self,
        input: Input,
        n_classes: int,
        metric: str = "classwise_ece",
        *,
        convention: str | Convention = "standard",
        nan: NotFinite = "error",
        validate: bool = True,
        **options: Any,
    ) -> None:
        rule = named(convention)
        counted = ("class-wise", rule.n_bins, rule.closed, rule.edges, rule.precision, n_classes)
        super().__init__(input, counted, nan=nan, validate=validate, **options)
        if isinstance(n_classes, bool) or not isinstance(n_classes, int) or n_classes < 1:
            self._refuse(f"n_classes must be an integer >= 1, got {n_classes!r}")
        if metric not in _METRICS:
            self._refuse(f"metric must be one of {', '.join(_METRICS)}, got {metric!r}")
        self.n_classes, self.metric, self.convention = n_classes, metric, rule
        self._add_sums("table", 3, n_classes, rule.n_bins)
        self._add_sums("low", 3, n_classes, 3)
        self._add_maximum("largest_label", torch.zeros((), dtype=torch.int64))

    def _count(self, values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if values.shape[1] != self.n_classes:
            self._refuse(f"preds must have {self.n_classes} classes, got {values.shape[1]}")
        if self.input == "probs":
            found = classwise_of_probs(values, labels, self.convention)
        else:
            found = classwise(Predictions(logits=values, labels=labels), self.convention)
        largest = torch.tensor(found.largest_label)
        return {"table": found.every.table, "low": found.low.table, "largest_label": largest}

    def _n(self, states: Mapping[str, Tensor]) -> int:
        return int(states["table"][0, 0].sum())

    def _bins(self, states: Mapping[str, Tensor]) -> Classwise:
        rule = self.convention
        every = ClasswiseStatistics(states["table"].cpu(), edges_of(rule), rule.closed)
        low = ClasswiseStatistics(states["low"].cpu(), edges_of(rule))
        return Classwise(every, low, int(states["largest_label"]), rule)

    def _measure(self, states: Mapping[str, Tensor]) -> float:
        return _METRICS[self.metric](self._bins(states))

    def _result(self, states: Mapping[str, Tensor]) -> Result:
        value, n, dropped = self._value(states), self._n(states), int(states["dropped"])
        return Result(value, n, dropped, self.convention, self._bins(states).every)


_METRICS = {
    "classwise_ece": Classwise.ece,
    "classwise_ece_thresholded": Classwise.ece_thresholded,
}

"""Calibration errors over confidence bins, as objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlcal.metrics import equal_width
from vlcal.metrics.binned import Binned, binned, edges_of
from vlcal.metrics.conventions import Convention
from vlcal.metrics.conventions import convention as named
from vlcal.metrics.derived import OverBins
from vlcal.metrics.objects.additive import new_axes
from vlcal.metrics.objects.declared import DeclaredMetric, Input, NotFinite, Result
from vlcal.ops import BinStatistics


class CalibrationError(DeclaredMetric):
    """A metric over the confidence bins of a convention: ECE, MCE, RMSCE, average CE and others.

    The state is a table [3, B] of integers: counts, correct ones, sums of confidence in units of
    2^-30; and counts of what a convention treats apart. Objects that differ in `metric` alone share
    it in a `MetricCollection`.

    Args:
        input: what `preds` holds: "logits" or "probs".
        metric: a function of `vlcal.metrics` over bins of equal width, by its name: "ece", "mce",
            "mce_weighted", "rmsce", "rmsce_debiased", "average_ce", "signed_gap" or
            "overconfidence".
        convention: a name of `vlcal.metrics.CONVENTIONS` or a `Convention`; not one that averages
            batches, whose numbers depend on the split.
        nan: samples with NaN or an infinity: "error", "drop" or "propagate".
        validate: False trusts the sums of probabilities and the range of logits.
        options: of `torchmetrics.Metric`.

    Raises:
        ValueError: an option is not one of those above.

        >>> ece = CalibrationError("probs")
        >>> ece.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]))
        >>> round(float(ece.compute()), 6)
        0.45
    """

    table: Tensor
    apart: Tensor

    def __init__(
        self,
        input: Input,
        metric: str = "ece",
        *,
        convention: str | Convention = "standard",
        nan: NotFinite = "error",
        validate: bool = True,
        **options: Any,
    ) -> None:
        rule = named(convention)
        counted = ("top label", *(getattr(rule, name) for name in _COUNTED))
        super().__init__(input, counted, nan=nan, validate=validate, **options)
        if metric not in _OVER_BINS:
            self._refuse(f"metric must be one of {', '.join(_OVER_BINS)}, got {metric!r}")
        if rule.batch_size is not None:
            self._refuse(
                f"convention {rule.name} averages batches of {rule.batch_size}, so that its "
                "numbers depend on the split; vlcal.evaluate has them"
            )
        self.metric, self.convention = metric, rule
        self._add_sums("table", 3, rule.n_bins)
        self._add_sums("apart", 2, 2)

    def _count(self, values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found = binned(self._seen(values, labels), self.convention)
        apart = torch.tensor([found.zeros, found.ones])
        return {"table": found.every.table, "apart": apart}

    def _n(self, states: Mapping[str, Tensor]) -> int:
        return int(states["table"][0].sum())

    def _binned(self, states: Mapping[str, Tensor]) -> Binned:
        rule = self.convention
        every = BinStatistics(states["table"].cpu(), edges_of(rule), rule.closed)
        (zeros, right_zeros), (ones, right_ones) = states["apart"].tolist()
        return Binned(every, (zeros, right_zeros), (ones, right_ones), rule)

    def _measure(self, states: Mapping[str, Tensor]) -> float:
        return _OVER_BINS[self.metric].formula(self._binned(states))

    def _result(self, states: Mapping[str, Tensor]) -> Result:
        value, n, dropped = self._value(states), self._n(states), int(states["dropped"])
        return Result(value, n, dropped, self.convention, self._binned(states).every)

    def plot(self, val: Any = None, ax: Any = None) -> tuple[Any, Any]:
        """Accuracy against confidence per bin; with `val` the values of several steps.

        Args:
            val: one value or several of `compute` or `forward`, to be drawn instead.
            ax: matplotlib axes to draw on; a figure of its own by default.

        Returns:
            The figure and the axes. Nothing is shown, and pyplot is not touched.
            `vlcal.reports` has the full reliability diagram of `result().bins`.
        """
        if val is not None:
            return super().plot(val, ax)
        found = self.result()
        bins = found.bins
        assert isinstance(bins, BinStatistics) and bins.edges is not None
        full = bins.count > 0
        accuracy, confidence = (
            (each[full] / bins.count[full]).numpy() for each in (bins.correct, bins.confidence)
        )
        left, width = bins.edges[:-1][full].numpy(), bins.edges.diff()[full].numpy()
        ax = new_axes(type(self).__name__) if ax is None else ax
        ax.bar(left, accuracy, width, align="edge", color="#c6cad0")
        ax.plot([0, 1], [0, 1], "--", color="#6b6f76", linewidth=1)
        ax.plot(confidence, accuracy, "o", color="#262626", markersize=4)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
        ax.set_title(f"{self.metric} {found.value:.4f}, convention {self.convention.name}")
        return ax.figure, ax


_OVER_BINS: dict[str, OverBins] = {
    each.__name__: each
    for each in (
        equal_width.ece,
        equal_width.mce,
        equal_width.mce_weighted,
        equal_width.rmsce,
        equal_width.rmsce_debiased,
        equal_width.average_ce,
        equal_width.signed_gap,
        equal_width.overconfidence,
    )
}
# what the counts of a convention depend on
_COUNTED = (
    "n_bins",
    "closed",
    "edges",
    "precision",
    "clip",
    "at_zero",
    "at_one",
    "ece_at_one",
)

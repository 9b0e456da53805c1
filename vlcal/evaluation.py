"""The public door of evaluation: one call, every metric, one named convention."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlcal import metrics
from vlcal.metrics import (
    METRICS,
    ClassTable,
    Classwise,
    Convention,
    Derived,
    MissingInput,
    OverBins,
    binned,
)
from vlcal.metrics.given import Given, Policy, Read, read
from vlcal.ops import BinStatistics
from vlcal.types import Outcomes, Predictions, VlcalWarning


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found.

    Args:
        metrics: values by name, fractions (NLL in nats), in the order of `vlcal.metrics.METRICS`.
        skipped: the sentence of every metric whose inputs were not given, by name.
        bins: the bins of the convention, what the reliability diagram draws.
        outcomes: one value per sample.
        convention: the rules behind the numbers.
        n: number of samples measured.
        n_classes: C, or None if only confidences were given.
        n_dropped: rows that were left out because of their values.
        notes: what a reader of the numbers has to know.
    """

    metrics: dict[str, float]
    skipped: dict[str, str]
    bins: BinStatistics = field(repr=False)
    outcomes: Outcomes = field(repr=False)
    convention: Convention
    n: int
    n_classes: int | None = None
    n_dropped: int = 0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rule = self.convention
        dropped = f", {self.n_dropped:,} dropped" if self.n_dropped else ""
        lines = [
            f"{self.n:,} samples{dropped}, convention {rule.name} "
            f"({rule.n_bins} bins closed on the {rule.closed})"
        ]
        width = max(16, *(len(name) + 1 for name in self.metrics))
        lines += [f"  {name:<{width}}{_shown(name, self.metrics[name])}" for name in self.metrics]
        # metrics that share bins share the reason
        lines += [f"  skipped {sentence}" for sentence in dict.fromkeys(self.skipped.values())]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the samples as plain numbers and strings, ready for JSON; None for NaN."""
        return {
            "n": self.n,
            "n_classes": self.n_classes,
            "n_dropped": self.n_dropped,
            "convention": self.convention.name,
            "metrics": {
                name: None if math.isnan(value) else value for name, value in self.metrics.items()
            },
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
            "bins": {
                "count": self.bins.count.tolist(),
                "confidence": self.bins.confidence.tolist(),
                "correct": self.bins.correct.tolist(),
                "closed": self.bins.closed,
            },
        }

    def per_class(self) -> ClassTable:
        """Count, confidence, accuracy and signed gap of every predicted class.

        Raises:
            ValueError: only confidences were given, so that no class is known.
        """
        if self.n_classes is None:
            raise ValueError("per_class: needs logits, probs or predictions, got confidences")
        return metrics.class_table(self.outcomes, self.n_classes)

    def interval(
        self, metric: str = "ece", *, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float]:
        """Percentile bootstrap interval of a metric over bins, or of the accuracy.

        Args:
            metric: its name.
            level: probability inside, in (0, 1).
            resamples: number of bootstrap resamples.
            seed: the same seed gives the same interval.

        Raises:
            ValueError: the metric is not over bins, level is not in (0, 1), or the convention
                averages batches.
        """
        known = {each.__name__: each for each in METRICS if isinstance(each, OverBins)}
        if metric not in known:
            raise ValueError(f"interval: unknown metric {metric!r}; known: {', '.join(known)}")
        if self.convention.batch_size is not None:
            raise ValueError(
                f"interval: convention {self.convention.name} averages batches, "
                "and bins of all rows do not know them"
            )
        bins = binned(self.outcomes, self.convention)
        generator = torch.Generator().manual_seed(seed)
        return metrics.interval(bins, known[metric], generator, level=level, resamples=resamples)

    def plot(self, ax: Any = None) -> Any:
        """The reliability diagram; needs the extra `vlcal[report]`.

        Args:
            ax: axes to draw into; a new figure by default.
        """
        from vlcal.reports.reliability import reliability_diagram

        return reliability_diagram(self.bins, ax=ax, title=f"convention {self.convention.name}")


def evaluate(
    *,
    logits: Any = None,
    probs: Any = None,
    confidence: Any = None,
    correct: Any = None,
    labels: Any = None,
    predictions: Predictions | None = None,
    proximity: Any = None,
    convention: str | Convention = "standard",
    classwise: bool = False,
    bad: Policy = "error",
    validate: bool = True,
) -> Evaluation:
    """Accuracy and every calibration metric, under one named convention.

    What an array is is said by the name it is given under and never guessed. Arrays may be NumPy,
    torch or lists; any byte order and strides, read-only and memory-mapped ones included.

    Args:
        logits: [N, C] floating point, already multiplied by the model's logit scale.
        probs: [N, C] in 0..1, rows sum to 1; taken as they are, no softmax.
        confidence: [N] in 0..1, the probability of the prediction; together with `correct`.
        correct: [N] bool, or integers 0 and 1.
        labels: [N] integers in 0..C-1; with `logits` and `probs`.
        predictions: what a model and its calibrator gave, with their labels, in place of arrays.
        proximity: [N] in 0..1, exp(-mean distance to the nearest hold-out images), for PIECE.
        convention: a name of `vlcal.metrics.CONVENTIONS`, or a `Convention`.
        classwise: also measure class-wise ECE, plain and thresholded; one more read of the rows.
        bad: what to do about rows with NaN, infinities, labels outside 0..C-1, or probabilities
            that are outside 0..1 or do not sum to 1. "error" raises, "drop" leaves them out and
            says how many, "propagate" makes every metric NaN that sees them.
        validate: False trusts the values (finite, sums, the range of logits); shapes, dtypes and
            labels are checked always.

    Returns:
        An Evaluation; metrics whose inputs were not given are in `skipped` with the reason.

    Raises:
        ValueError: no input or more than one kind of it is given, or a value breaks the contract
            above; the message counts the bad rows and names the first.
        NoSamplesError: N is 0, or every row was dropped.

    Under a convention that averages batches the order of the rows matters, and a VlcalWarning says
    what ECE is over all rows at once.

        >>> round(evaluate(confidence=[0.9, 0.8], correct=[True, False]).metrics["ece"], 6)
        0.45
    """
    rule = metrics.convention(convention)
    given = Given(logits, probs, confidence, predictions, correct, labels, proximity)
    found = read(given, bad, validate)
    if classwise and found.classwise is None:
        raise ValueError("evaluate: classwise needs logits, probs or predictions, got confidences")
    by_class = found.classwise if classwise else None
    values, skipped, bins = _measure(found.outcomes, rule, by_class)
    notes = _pooled(found.outcomes, rule, values) + _bad_rows(found, bad, values)
    left_out = 0 if found.bad is None else int(found.bad.sum())
    n = len(found.outcomes.confidence)
    return Evaluation(
        values,
        skipped,
        bins,
        found.outcomes,
        rule,
        n if bad == "drop" else n + left_out,
        found.n_classes,
        left_out if bad == "drop" else 0,
        tuple(notes),
    )


def _shown(name: str, value: float) -> str:
    if name == "nll":
        return f"{value:10.4f} nats"
    return f"{value:10.4f}" if name == "brier" else f"{100 * value:10.2f} %"


def _measure(
    seen: Outcomes, rule: Convention, by_class: Callable[[Convention], Classwise] | None
) -> tuple[dict[str, float], dict[str, str], BinStatistics]:
    values: dict[str, float] = {}
    skipped: dict[str, str] = {}
    shared: dict[Any, Any] = {binned: binned(seen, rule)}
    for metric in METRICS if len(seen.confidence) else ():
        try:
            values[metric.__name__] = _value(metric, seen, rule, shared)
        except MissingInput as sentence:
            skipped[metric.__name__] = str(sentence)
    if by_class is not None and len(seen.confidence):
        tables = by_class(rule)
        values["classwise_ece"] = tables.ece()
        values["classwise_ece_thresholded"] = tables.ece_thresholded()
    return values, skipped, shared[binned].every


def _value(metric: Any, seen: Outcomes, rule: Convention, shared: dict[Any, Any]) -> float:
    by_batches = isinstance(metric, OverBins) and rule.batch_size is not None
    if by_batches or not isinstance(metric, Derived):
        return metric(seen, rule)
    if metric.gather not in shared:
        shared[metric.gather] = metric.gather(seen, rule)
    return metric.formula(shared[metric.gather])


def _pooled(seen: Outcomes, rule: Convention, values: dict[str, float]) -> list[str]:
    """The warning of a convention that averages batches, with what all rows at once give."""
    if rule.batch_size is None or "ece" not in values:
        return []
    pooled = metrics.ece(seen, replace(rule, batch_size=None))
    note = (
        f"convention {rule.name} averages batches of {rule.batch_size} in the order of the rows: "
        f"ECE {100 * values['ece']:.2f} %; over all rows at once it is {100 * pooled:.2f} %"
    )
    warnings.warn(f"evaluate: {note}", VlcalWarning, stacklevel=3)
    return [note]


def _bad_rows(found: Read, policy: str, values: dict[str, float]) -> list[str]:
    """What became of bad rows; under "propagate" the metrics that see them become NaN."""
    notes = []
    if found.bad is not None:
        end = "dropped" if policy == "drop" else "every metric is NaN"
        notes.append(f"{_count(found.bad)}: {end}")
    if found.bad_proximity is not None:
        notes.append(f"{_count(found.bad_proximity)} in their proximity: piece is NaN")
    if policy == "propagate" and found.bad is not None:
        measured = list(values) or [metric.__name__ for metric in METRICS]
        values.update(dict.fromkeys(measured, math.nan))
    if found.bad_proximity is not None and "piece" in values:
        values["piece"] = math.nan
    return notes


def _count(rows: Tensor) -> str:
    return f"{int(rows.sum())} bad rows, the first is row {int(rows.int().argmax())}"

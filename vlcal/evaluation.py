"""The public door of evaluation: one call, every metric, one named convention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vlcal import metrics
from vlcal._arrays import as_tensor
from vlcal.metrics import METRICS, ClassTable, Convention, MissingInput
from vlcal.metrics.arrays import (
    check_logits,
    check_probs,
    check_unit_range,
    label_vector,
    matrix,
)
from vlcal.ops import BinStatistics
from vlcal.types import NoSamplesError, Outcomes, Predictions


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found.

    Args:
        metrics: values by name, fractions (NLL in nats), in the order of `vlcal.metrics.METRICS`.
        skipped: the sentence of every metric whose inputs were not given, by name.
        bins: the bins of the convention, what the reliability diagram draws.
        outcomes: one value per sample.
        convention: the rules behind the numbers.
        n: number of samples.
        n_classes: C, or None if only confidences were given.
    """

    metrics: dict[str, float]
    skipped: dict[str, str]
    bins: BinStatistics = field(repr=False)
    outcomes: Outcomes = field(repr=False)
    convention: Convention
    n: int
    n_classes: int | None = None

    def __str__(self) -> str:
        rule = self.convention
        lines = [
            f"{self.n:,} samples, convention {rule.name} "
            f"({rule.n_bins} bins closed on the {rule.closed})"
        ]
        for name, value in self.metrics.items():
            shown = f"{value:10.4f} nats" if name == "nll" else f"{100 * value:10.2f} %"
            shown = f"{value:10.4f}" if name == "brier" else shown
            lines.append(f"  {name:<16}{shown}")
        lines += [f"  skipped {sentence}" for sentence in self.skipped.values()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the samples as plain numbers and strings, ready for JSON."""
        return {
            "n": self.n,
            "n_classes": self.n_classes,
            "convention": self.convention.name,
            "metrics": dict(self.metrics),
            "skipped": dict(self.skipped),
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
        validate: False trusts the values (finite, sums, the range of logits); shapes, dtypes and
            labels are checked always.

    Returns:
        An Evaluation; metrics whose inputs were not given are in `skipped` with the reason.

    Raises:
        ValueError: no input or more than one kind of it is given, or a value breaks the contract
            above; the message counts the bad rows and names the first.
        NoSamplesError: N is 0.

        >>> round(evaluate(confidence=[0.9, 0.8], correct=[True, False]).metrics["ece"], 6)
        0.45
    """
    rule = metrics.convention(convention)
    inputs = {
        "logits": logits,
        "probs": probs,
        "confidence": confidence,
        "predictions": predictions,
    }
    given = [name for name, value in inputs.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"evaluate: give exactly one of {', '.join(inputs)}, got {', '.join(given) or 'none'}"
        )
    if (correct is not None) != (confidence is not None):
        raise ValueError("evaluate: confidence and correct go together, got only one of them")
    seen, n_classes = _READERS[given[0]](inputs[given[0]], correct, labels, validate)
    if proximity is not None:
        seen = seen._replace(proximity=_proximity(proximity, seen, validate))
    values, skipped = _measure(seen, rule)
    n = len(seen.confidence)
    return Evaluation(values, skipped, metrics.bins(seen, rule), seen, rule, n, n_classes)


def _measure(seen: Outcomes, rule: Convention) -> tuple[dict[str, float], dict[str, str]]:
    values: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for metric in METRICS:
        try:
            values[metric.__name__] = metric(seen, rule)
        except MissingInput as sentence:
            skipped[metric.__name__] = str(sentence)
    return values, skipped


_Read = tuple[Outcomes, int | None]


def _from_logits(logits: Any, correct: Any, labels: Any, validate: bool) -> _Read:
    values = matrix("evaluate: logits", logits)
    _refuse_empty(len(values))
    chosen = label_vector("evaluate", labels, values)
    if validate:
        check_logits("evaluate", values)
    return metrics.outcomes(Predictions(logits=values, labels=chosen)), values.shape[1]


def _from_probs(probs: Any, correct: Any, labels: Any, validate: bool) -> _Read:
    values = matrix("evaluate: probs", probs)
    _refuse_empty(len(values))
    chosen = label_vector("evaluate", labels, values)
    if validate:
        check_probs("evaluate", values)
    return metrics.outcomes_of_probs(values, chosen), values.shape[1]


def _from_confidence(confidence: Any, correct: Any, labels: Any, validate: bool) -> _Read:
    if labels is not None:
        raise ValueError("evaluate: labels go with logits, probs or predictions, not confidence")
    values = as_tensor("evaluate: confidence", confidence)
    right = as_tensor("evaluate: correct", correct).to(values.device)
    if values.ndim != 1 or not values.is_floating_point() or right.shape != values.shape:
        raise ValueError(
            "evaluate: confidence must be floating point [N] and correct [N], "
            f"got {values.dtype} {tuple(values.shape)} and {tuple(right.shape)}"
        )
    _refuse_empty(len(values))
    if right.is_floating_point() or bool(((right != 0) & (right != 1)).any()):
        raise ValueError(f"evaluate: correct must be bool, or integers 0 and 1, got {right.dtype}")
    check_unit_range("evaluate: confidence", values)
    return Outcomes(values, right.bool()), None


def _from_predictions(predictions: Any, correct: Any, labels: Any, validate: bool) -> _Read:
    if not isinstance(predictions, Predictions):
        raise ValueError(
            f"evaluate: predictions must be a Predictions, got {type(predictions).__name__}; "
            "arrays go in as logits= or probs="
        )
    if labels is not None:
        raise ValueError("evaluate: predictions carry their labels, got labels as well")
    if predictions.labels is None:
        raise ValueError("evaluate: needs predictions with labels [N], got none")
    _refuse_empty(len(predictions))
    return metrics.outcomes(predictions), predictions.n_classes


_READERS = {
    "logits": _from_logits,
    "probs": _from_probs,
    "confidence": _from_confidence,
    "predictions": _from_predictions,
}


def _refuse_empty(n: int) -> None:
    if n == 0:
        raise NoSamplesError("evaluate: needs at least one sample, got none")


def _proximity(proximity: Any, seen: Outcomes, validate: bool) -> Any:
    values = as_tensor("evaluate: proximity", proximity).to(seen.confidence.device)
    if values.shape != seen.confidence.shape or not values.is_floating_point():
        raise ValueError(
            f"evaluate: proximity must be floating point [N] = [{len(seen.confidence)}], "
            f"got {values.dtype} {tuple(values.shape)}"
        )
    if validate:
        check_unit_range("evaluate: proximity, exp(-mean distance),", values)
    return values

"""What a caller of `evaluate` gave, read into outcomes; what becomes of bad rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vlcal import _native
from vlcal._arrays import as_tensor
from vlcal.metrics.arrays import (
    check_logits,
    check_no_cosines,
    check_probs,
    check_unit_range,
    label_vector,
    matrix,
    not_finite,
    off_in_sum,
    outside_unit_range,
)
from vlcal.metrics.classwise_bins import Classwise, classwise, classwise_of_probs
from vlcal.metrics.conventions import Convention
from vlcal.metrics.observed import outcomes, outcomes_of_probs
from vlcal.types import NoSamplesError, Outcomes, Predictions

Policy = Literal["error", "drop", "propagate"]


class Given(NamedTuple):
    """The arguments of `evaluate`, as they came."""

    logits: Any
    probs: Any
    confidence: Any
    predictions: Any
    correct: Any
    labels: Any
    proximity: Any


class Read(NamedTuple):
    """Outcomes of the good rows, and which rows are not among them.

    `bad` [N] are rows with bad values, None if there are none; `bad_proximity` those whose
    proximity alone is bad. `classwise` makes the class-wise bins, None without probabilities.
    """

    outcomes: Outcomes
    n_classes: int | None
    classwise: Callable[[Convention], Classwise] | None
    bad: Tensor | None
    bad_proximity: Tensor | None


class _Source(NamedTuple):
    """Checked arrays: how many rows and classes, which rows are bad, and outcomes of some rows."""

    n: int
    n_classes: int | None
    bad: Tensor | None
    rows: Callable[[Any], tuple[Outcomes, Callable[[Convention], Classwise] | None]]


def read(given: Given, policy: Policy, validate: bool) -> Read:
    """Outcomes of what was given.

    Raises:
        ValueError: no input or more than one kind of it, or arrays that break the contract of
            `evaluate`.
        NoSamplesError: there are no rows, or all of them are dropped.
    """
    source = _READERS[_kind(given, policy, validate)](given, policy, validate)
    near, bad_near = _proximity(given.proximity, source.n, policy, validate)
    bad = _some(source.bad)
    if policy == "drop":
        bad, bad_near = _some(_either(bad, bad_near)), None
    kept = slice(None) if bad is None else ~bad
    if policy == "drop" and bad is not None and bool(bad.all()):
        raise NoSamplesError(f"evaluate: needs at least one sample, all {source.n} rows are bad")
    seen, by_class = source.rows(kept)
    if near is not None:
        seen = seen._replace(proximity=near.to(seen.confidence.device)[kept])
    return Read(seen, source.n_classes, by_class, bad, bad_near)


def _kind(given: Given, policy: Policy, validate: bool) -> str:
    kinds = list(_READERS)
    found = [name for name in kinds if getattr(given, name) is not None]
    if len(found) != 1:
        raise ValueError(
            f"evaluate: give exactly one of {', '.join(kinds)}, got {', '.join(found) or 'none'}"
        )
    if (given.correct is not None) != (given.confidence is not None):
        raise ValueError("evaluate: confidence and correct go together, got only one of them")
    if policy not in ("error", "drop", "propagate"):
        raise ValueError(f"evaluate: bad must be error, drop or propagate, got {policy!r}")
    if policy != "error" and not validate:
        raise ValueError(f"evaluate: bad={policy!r} looks at the values, so validate must be True")
    return found[0]


def _from_logits(given: Given, policy: Policy, validate: bool) -> _Source:
    values = matrix("evaluate: logits", given.logits)
    _refuse_empty(len(values))
    labels = _labels(given.labels, values, policy)
    bad = None
    if policy != "error":
        check_no_cosines("evaluate", values)
        bad = _no_label(labels, values)
        if not _native.all_finite(values):
            bad = bad | not_finite(values)
    elif validate:
        check_logits("evaluate", values)

    def rows(kept: Any) -> tuple[Outcomes, Callable[[Convention], Classwise]]:
        chosen = Predictions(logits=values[kept], labels=labels[kept])
        return _outcomes(chosen), lambda rule: classwise(chosen, rule)

    return _Source(len(values), values.shape[1], bad, rows)


def _from_probs(given: Given, policy: Policy, validate: bool) -> _Source:
    values = matrix("evaluate: probs", given.probs)
    _refuse_empty(len(values))
    labels = _labels(given.labels, values, policy)
    bad = None
    if policy != "error":
        bad = _no_label(labels, values) | outside_unit_range(values) | off_in_sum(values)
    elif validate:
        check_probs("evaluate", values)

    def rows(kept: Any) -> tuple[Outcomes, Callable[[Convention], Classwise]]:
        probs, chosen = values[kept], labels[kept]
        seen = outcomes_of_probs(probs, chosen) if len(probs) else NONE
        return seen, lambda rule: classwise_of_probs(probs, chosen, rule)

    return _Source(len(values), values.shape[1], bad, rows)


def _from_confidence(given: Given, policy: Policy, validate: bool) -> _Source:
    if given.labels is not None:
        raise ValueError("evaluate: labels go with logits, probs or predictions, not confidence")
    values = as_tensor("evaluate: confidence", given.confidence)
    right = as_tensor("evaluate: correct", given.correct).to(values.device)
    if values.ndim != 1 or not values.is_floating_point() or right.shape != values.shape:
        raise ValueError(
            "evaluate: confidence must be floating point [N] and correct [N], "
            f"got {values.dtype} {tuple(values.shape)} and {tuple(right.shape)}"
        )
    _refuse_empty(len(values))
    if right.is_floating_point() or bool(((right != 0) & (right != 1)).any()):
        raise ValueError(f"evaluate: correct must be bool, or integers 0 and 1, got {right.dtype}")
    if policy == "error":
        check_unit_range("evaluate: confidence", values)
    bad = None if policy == "error" else outside_unit_range(values)
    return _Source(
        len(values), None, bad, lambda kept: (Outcomes(values[kept], right[kept].bool()), None)
    )


def _from_predictions(given: Given, policy: Policy, validate: bool) -> _Source:
    predictions = given.predictions
    if not isinstance(predictions, Predictions):
        raise ValueError(
            f"evaluate: predictions must be a Predictions, got {type(predictions).__name__}; "
            "arrays go in as logits= or probs="
        )
    if given.labels is not None:
        raise ValueError("evaluate: predictions carry their labels, got labels as well")
    if predictions.labels is None:
        raise ValueError("evaluate: needs predictions with labels [N], got none")
    _refuse_empty(len(predictions))

    def rows(kept: Any) -> tuple[Outcomes, Callable[[Convention], Classwise]]:
        # their values were checked when they were made; only a bad proximity leaves rows out
        chosen = predictions if isinstance(kept, slice) else predictions.select(kept)
        return _outcomes(chosen), lambda rule: classwise(chosen, rule)

    return _Source(len(predictions), predictions.n_classes, None, rows)


_READERS = {
    "logits": _from_logits,
    "probs": _from_probs,
    "confidence": _from_confidence,
    "predictions": _from_predictions,
}


def _proximity(
    proximity: Any, n: int, policy: Policy, validate: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Proximity [N], and its bad rows."""
    if proximity is None:
        return None, None
    values = as_tensor("evaluate: proximity", proximity)
    if values.shape != (n,) or not values.is_floating_point():
        raise ValueError(
            f"evaluate: proximity must be floating point [N] = [{n}], "
            f"got {values.dtype} {tuple(values.shape)}"
        )
    if policy != "error":
        return values, _some(outside_unit_range(values))
    if validate:
        check_unit_range("evaluate: proximity, exp(-mean distance),", values)
    return values, None


NONE = Outcomes(
    torch.zeros(0),
    torch.zeros(0, dtype=torch.bool),
    torch.zeros(0, dtype=torch.int64),
    torch.zeros(0, dtype=torch.int64),
    torch.zeros(0),
    torch.zeros(0),
)


def _outcomes(predictions: Predictions) -> Outcomes:
    return outcomes(predictions) if len(predictions) else NONE


def _labels(labels: Any, like: Tensor, policy: Policy) -> Tensor:
    """Labels [N] of integers; out of range only where that is no error."""
    values = label_vector("evaluate", labels, like, any_value=True)
    bad = _some(_no_label(values, like)) if policy == "error" else None
    if bad is not None:
        first = int(bad.int().argmax())
        raise ValueError(
            f"evaluate: labels must be in 0..{like.shape[1] - 1}, got {int(values[first])} in row "
            f"{first} ({int(bad.sum())} in all); bad='drop' leaves such rows out"
        )
    return values


def _no_label(labels: Tensor, like: Tensor) -> Tensor:
    return (labels < 0) | (labels >= like.shape[1])


def _either(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first | second.to(first.device)


def _some(rows: Tensor | None) -> Tensor | None:
    """The rows if there are any."""
    return rows if rows is not None and bool(rows.any()) else None


def _refuse_empty(n: int) -> None:
    if n == 0:
        raise NoSamplesError("evaluate: needs at least one sample, got none")

"""What a metric needs, and the sentence it says when that is not there."""

from __future__ import annotations

from torch import Tensor

from vlcal.metrics.conventions import Convention
from vlcal.types import NoSamplesError, Outcomes

GIVE = {
    "log_likelihood": "labels and probabilities of all classes",
    "brier": "labels and probabilities of all classes",
    "proximity": "the proximity of every sample",
    "predicted": "the predicted class of every sample",
}


class MissingInput(ValueError):
    """A metric needs what these outcomes do not carry, or is not defined for them."""


def refuse_empty(who: str, outcomes: Outcomes) -> None:
    """Raise NoSamplesError if there is no sample."""
    if len(outcomes.confidence) == 0:
        raise NoSamplesError(f"{who}: needs at least one sample, got none")


def need(who: str, outcomes: Outcomes, field: str) -> Tensor:
    """The field [N], or MissingInput with the sentence that says what to give."""
    refuse_empty(who, outcomes)
    value = getattr(outcomes, field)
    if value is None:
        raise MissingInput(f"{who}: needs {GIVE[field]}")
    return value


def undefined(who: str, what: str, convention: Convention) -> MissingInput:
    """The error of a metric whose rule the convention does not have."""
    return MissingInput(f"{who}: convention {convention.name} has no {what}")

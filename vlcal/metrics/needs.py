"""What a metric needs, and the sentence it says when that is not there."""

from __future__ import annotations

from torch import Tensor

from vlcal.types import NoSamplesError, Outcomes

GIVE = {
    "log_likelihood": "labels and probabilities of all classes",
    "brier": "labels and probabilities of all classes",
    "proximity": "the proximity of every sample",
    "predicted": "the predicted class of every sample",
}


class MissingInput(ValueError):
    """A metric needs a field that these outcomes do not carry."""


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

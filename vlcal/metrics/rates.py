"""Accuracy and mean confidence: the two means whose difference calibration is about."""

from __future__ import annotations

from vlcal.metrics.conventions import Convention
from vlcal.metrics.needs import refuse_empty
from vlcal.types import Outcomes


def accuracy(outcomes: Outcomes, convention: Convention) -> float:
    """Share of correct predictions, in 0..1; the same under every convention."""
    refuse_empty("accuracy", outcomes)
    return float(outcomes.correct.double().mean())


def mean_confidence(outcomes: Outcomes, convention: Convention) -> float:
    """Mean probability of the predicted class, in 0..1; the same under every convention."""
    refuse_empty("mean_confidence", outcomes)
    return float(outcomes.confidence.double().mean())

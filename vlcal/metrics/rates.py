"""Accuracy and mean confidence: the two means whose difference calibration is about."""

from __future__ import annotations

from vlcal.metrics.binned import Binned
from vlcal.metrics.conventions import Convention
from vlcal.metrics.derived import OverBins
from vlcal.metrics.needs import refuse_empty
from vlcal.types import Outcomes


@OverBins
def accuracy(bins: Binned) -> float:
    """Share of correct predictions, in 0..1; the same under every convention."""
    return int(bins.every.correct.sum()) / bins.n


def mean_confidence(outcomes: Outcomes, convention: Convention) -> float:
    """Mean probability of the predicted class, in 0..1; the same under every convention."""
    refuse_empty("mean_confidence", outcomes)
    return float(outcomes.confidence.double().mean())

"""Metrics: functions of `Outcomes` and a `Convention`, fractions and never percentages."""

from vlcal.metrics.conventions import CONVENTIONS, Convention, convention
from vlcal.metrics.equal_mass import ace
from vlcal.metrics.equal_width import bins, ece, mce, mce_weighted
from vlcal.metrics.intervals import ece_interval, wilson_interval
from vlcal.metrics.needs import MissingInput
from vlcal.metrics.observed import outcomes, outcomes_of_probs
from vlcal.metrics.per_class import ClassTable, class_table
from vlcal.metrics.proximity_informed import piece
from vlcal.metrics.rates import accuracy, mean_confidence
from vlcal.metrics.scores import brier, nll

METRICS = (accuracy, mean_confidence, ece, mce, mce_weighted, ace, piece, nll, brier)

__all__ = [
    "CONVENTIONS",
    "METRICS",
    "ClassTable",
    "Convention",
    "MissingInput",
    "accuracy",
    "ace",
    "bins",
    "brier",
    "class_table",
    "convention",
    "ece",
    "ece_interval",
    "mce",
    "mce_weighted",
    "mean_confidence",
    "nll",
    "outcomes",
    "outcomes_of_probs",
    "piece",
    "wilson_interval",
]

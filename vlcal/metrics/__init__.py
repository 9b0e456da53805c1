"""Metrics: functions of `Outcomes` and a `Convention`, fractions and never percentages."""

from vlcal.metrics.binned import Binned, binned
from vlcal.metrics.classwise_bins import (
    Classwise,
    classwise,
    classwise_ece,
    classwise_ece_thresholded,
    classwise_of_probs,
)
from vlcal.metrics.conventions import CONVENTIONS, Convention, convention
from vlcal.metrics.derived import Derived, OverBins
from vlcal.metrics.equal_mass import ace, ace_mean
from vlcal.metrics.equal_width import (
    average_ce,
    bins,
    ece,
    mce,
    mce_weighted,
    overconfidence,
    rmsce,
    rmsce_debiased,
    signed_gap,
    underconfidence,
)
from vlcal.metrics.features import FeatureReport, feature_report
from vlcal.metrics.intervals import (
    difference_interval,
    ece_interval,
    interval,
    wilson_interval,
)
from vlcal.metrics.nearness import ProximityTable, image_proximity, proximity_table
from vlcal.metrics.needs import MissingInput
from vlcal.metrics.observed import outcomes, outcomes_of_probs
from vlcal.metrics.per_class import ClassTable, class_table
from vlcal.metrics.proximity_informed import piece
from vlcal.metrics.rates import accuracy, mean_confidence
from vlcal.metrics.scores import brier, nll
from vlcal.metrics.selective import RiskCoverage, aurc, auroc, risk_coverage

METRICS = (
    accuracy,
    mean_confidence,
    ece,
    mce,
    mce_weighted,
    ace,
    piece,
    nll,
    brier,
    signed_gap,
    overconfidence,
    underconfidence,
    average_ce,
    ace_mean,
    rmsce,
    rmsce_debiased,
    auroc,
    aurc,
)

__all__ = [
    "CONVENTIONS",
    "METRICS",
    "Binned",
    "ClassTable",
    "Classwise",
    "Convention",
    "Derived",
    "FeatureReport",
    "MissingInput",
    "OverBins",
    "ProximityTable",
    "RiskCoverage",
    "accuracy",
    "ace",
    "ace_mean",
    "aurc",
    "auroc",
    "average_ce",
    "binned",
    "bins",
    "brier",
    "class_table",
    "classwise",
    "classwise_ece",
    "classwise_ece_thresholded",
    "classwise_of_probs",
    "convention",
    "difference_interval",
    "ece",
    "ece_interval",
    "feature_report",
    "image_proximity",
    "interval",
    "mce",
    "mce_weighted",
    "mean_confidence",
    "nll",
    "outcomes",
    "outcomes_of_probs",
    "overconfidence",
    "piece",
    "proximity_table",
    "risk_coverage",
    "rmsce",
    "rmsce_debiased",
    "signed_gap",
    "underconfidence",
    "wilson_interval",
]

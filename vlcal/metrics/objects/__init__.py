"""Metric objects with torchmetrics' protocol, their states sums of integers.

`torchmetrics.Metric` is their base class where torchmetrics is installed, so that they work inside
`MetricCollection`; without it they offer the same methods. Importing this package imports
torchmetrics, so nothing else here does.

A state of fixed size cannot hold bins of equal mass, whose edges depend on all samples: ACE and
PIECE are functions (`vlcal.metrics`), not objects.
"""

from vlcal.metrics.objects.auroc import ConfidenceAUROC
from vlcal.metrics.objects.binned import CalibrationError
from vlcal.metrics.objects.classwise import ClasswiseCalibrationError
from vlcal.metrics.objects.declared import Result
from vlcal.metrics.objects.means import (
    Accuracy,
    BrierScore,
    MeanConfidence,
    NegativeLogLikelihood,
)

__all__ = [
    "Accuracy",
    "BrierScore",
    "CalibrationError",
    "ClasswiseCalibrationError",
    "ConfidenceAUROC",
    "MeanConfidence",
    "NegativeLogLikelihood",
    "Result",
]

"""Confidence that can be trusted for CLIP-like vision-language models, at any vocabulary size."""

from vlcal.calibrators import (
    Chain,
    ContrastAware,
    DensityRatio,
    DistanceAware,
    HistogramBinning,
    IsotonicRegression,
    MultiIsotonic,
    ProximityBinned,
    SampleAdaptive,
    TemperatureScaling,
)
from vlcal.compat.patching import patch
from vlcal.evaluation import Evaluation, evaluate
from vlcal.types import (
    Batch,
    ClassSet,
    NoSamplesError,
    Outcomes,
    Outputs,
    Predictions,
    VlcalWarning,
)

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Chain",
    "ClassSet",
    "ContrastAware",
    "DensityRatio",
    "DistanceAware",
    "Evaluation",
    "HistogramBinning",
    "IsotonicRegression",
    "MultiIsotonic",
    "NoSamplesError",
    "Outcomes",
    "Outputs",
    "Predictions",
    "ProximityBinned",
    "SampleAdaptive",
    "TemperatureScaling",
    "VlcalWarning",
    "__version__",
    "evaluate",
    "patch",
]

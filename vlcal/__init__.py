"""Confidence that can be trusted for CLIP-like vision-language models, at any vocabulary size."""

from vlcal.calibrators import Chain, DistanceAware, TemperatureScaling
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
    "DistanceAware",
    "Evaluation",
    "NoSamplesError",
    "Outcomes",
    "Outputs",
    "Predictions",
    "TemperatureScaling",
    "VlcalWarning",
    "__version__",
    "evaluate",
    "patch",
]

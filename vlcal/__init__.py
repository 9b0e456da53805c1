"""Confidence that can be trusted for CLIP-like vision-language models, at any vocabulary size."""

from vlcal.types import Batch, ClassSet, Outcomes, Outputs, Predictions

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "ClassSet",
    "Outcomes",
    "Outputs",
    "Predictions",
    "__version__",
]

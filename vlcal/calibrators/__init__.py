"""Calibrators: fitted on validation predictions, they map predictions to predictions."""

import importlib

from vlcal.calibrators.base import (
    Calibrator,
    Chain,
    FittedOnTest,
    NewClasses,
    NotFitted,
    RowScaling,
)
from vlcal.calibrators.choosing import Chosen, choose, fit_all, refuse_early
from vlcal.calibrators.contrast import ContrastAware
from vlcal.calibrators.density import DensityRatio
from vlcal.calibrators.distance import DistanceAware
from vlcal.calibrators.histogram import HistogramBinning
from vlcal.calibrators.isotonic import IsotonicRegression, MultiIsotonic
from vlcal.calibrators.nll import TemperatureSums
from vlcal.calibrators.proximity import ProximityBinned
from vlcal.calibrators.sample_scaling import SampleAdaptive
from vlcal.calibrators.storage import load_calibrator, save_calibrator
from vlcal.calibrators.temperature import TemperatureScaling

CALIBRATORS = (
    TemperatureScaling,
    DistanceAware,
    ContrastAware,
    SampleAdaptive,
    HistogramBinning,
    IsotonicRegression,
    MultiIsotonic,
    ProximityBinned,
    DensityRatio,
)


def calibrator(name: str) -> type:
    """The class of that name in `CALIBRATORS`, or of a dotted path `package.module:Class`.

    Raises:
        ValueError: the name is not known; the message lists those that are.
        ImportError: the module of a dotted path cannot be imported.
    """
    known = {each.name: each for each in CALIBRATORS}
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"calibrator: unknown name {name!r}; known: {', '.join(known)}, or package.module:Class"
        )
    found = getattr(importlib.import_module(module), attribute, None)
    if not isinstance(found, type):
        raise ValueError(f"calibrator: {module} has no class {attribute!r}")
    return found


__all__ = [
    "CALIBRATORS",
    "Calibrator",
    "Chain",
    "Chosen",
    "ContrastAware",
    "DensityRatio",
    "DistanceAware",
    "FittedOnTest",
    "HistogramBinning",
    "IsotonicRegression",
    "MultiIsotonic",
    "NewClasses",
    "NotFitted",
    "ProximityBinned",
    "RowScaling",
    "SampleAdaptive",
    "TemperatureScaling",
    "TemperatureSums",
    "calibrator",
    "choose",
    "fit_all",
    "load_calibrator",
    "refuse_early",
    "save_calibrator",
]

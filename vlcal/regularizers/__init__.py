"""Training-time calibration: terms and rescalings that work with every tuner."""

from vlcal.regularizers.base import EncodeText, Regularizer

REGULARIZERS: tuple[type[Regularizer], ...] = ()

__all__ = ["REGULARIZERS", "EncodeText", "Regularizer"]

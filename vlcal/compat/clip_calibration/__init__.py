"""The names of the published code of DAC (ml-stat-Sustech/CLIP_Calibration): NumPy in and out.

Each function and class gives the original's numbers, quirks included; what differs on purpose is
that bad inputs are errors, nothing is printed, no GPU is needed and inputs are never written into.
New work is better served by `vlcal.metrics` and `vlcal.calibrators`, which have none of the quirks.
"""

from vlcal.compat.clip_calibration.binning import BinMeanShift, MultiIsotonicRegression
from vlcal.compat.clip_calibration.density import DensityRatioCalibration
from vlcal.compat.clip_calibration.distances import (
    DistanseAwareCalibration,
    get_knn_dists,
    get_val_image_knn_dists,
)
from vlcal.compat.clip_calibration.metrics import ECE, MCE, PIECE, AdaptiveECE, compute_acc_bin
from vlcal.compat.netcal import HistogramBinning, IsotonicRegression

__all__ = [
    "ECE",
    "MCE",
    "PIECE",
    "AdaptiveECE",
    "BinMeanShift",
    "DensityRatioCalibration",
    "DistanseAwareCalibration",
    "HistogramBinning",
    "IsotonicRegression",
    "MultiIsotonicRegression",
    "compute_acc_bin",
    "get_knn_dists",
    "get_val_image_knn_dists",
]

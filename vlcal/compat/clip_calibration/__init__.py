"""The names of the published code of DAC (ml-stat-Sustech/CLIP_Calibration): NumPy in and out.

What is reproduced, quirks included: ECE that loses the gap of a confidence of exactly 1, MCE
weighted by mass, percentiles interpolated linearly as scikit-learn did in 2024, NumPy's rounding of
float16 features in DAC and its rule that 0.05 means "the same class", the softmax that
`MultiIsotonicRegression` and `BinMeanShift` apply to what is a probability already, rows of NaN.

What differs: bad inputs are errors, nothing is printed, no GPU is needed, inputs are never written
into, samples above 200,000 are not thinned before percentiles are taken, and a bin of proximity
without rows is skipped. `knn_strategy` and `bin_strategy` take "quantile" and "uniform",
`bandwidth` takes "normal_reference" or two numbers.

`vlcal.metrics` under the convention "dac2024" has the same numbers with their rules said beside
them; by default, and in `vlcal.calibrators`, there are none of the quirks.
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

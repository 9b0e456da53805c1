"""netcal's names for classification: probabilities in, NumPy in and out.

What is reproduced (netcal 1.4): `metrics.ECE`, `ACE` and `MCE` with `measure`; `binning` and
`scaling` with `fit`, `transform` and `fit_transform`; how a binary problem is told from one of
several classes; edges of bins rounded to the precision of X; classes without samples; rows of NaN.

What differs: nothing is printed; options that are not supported are refused by name when they are
asked for, detection first of all; values outside 0..1, NaN and labels that are no class are errors;
the temperature is found exactly, in float32 as well, where netcal's optimizer does not move; there
is no `save_model`, `get_params` or `set_params`.

`vlcal.metrics` and `vlcal.calibrators` differ by default: 15 bins (lo, hi], the confidence of the
predicted class however many labels occur, logits in, and a row without any probability keeps the
uncalibrated one. Their `ACE` is the adaptive one; netcal's is `average_ce`.
"""

from vlcal.compat.netcal.binning import HistogramBinning, IsotonicRegression
from vlcal.compat.netcal.metrics import ACE, ECE, MCE
from vlcal.compat.netcal.scaling import TemperatureScaling

__all__ = ["ACE", "ECE", "MCE", "HistogramBinning", "IsotonicRegression", "TemperatureScaling"]

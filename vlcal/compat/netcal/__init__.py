"""netcal's names for classification: probabilities in, NumPy in and out, netcal 1.4's numbers.

What is not supported is refused by name when it is asked for. Bad inputs are errors where netcal
prints a warning or goes on. New work is better served by `vlcal.metrics` and `vlcal.calibrators`.
"""

from vlcal.compat.netcal.binning import HistogramBinning, IsotonicRegression
from vlcal.compat.netcal.metrics import ACE, ECE, MCE
from vlcal.compat.netcal.scaling import TemperatureScaling

__all__ = ["ACE", "ECE", "MCE", "HistogramBinning", "IsotonicRegression", "TemperatureScaling"]

"""Fused operations for calibration, each with a plain-PyTorch oracle in `vlcal.ops.reference`."""

from vlcal.ops import binning
from vlcal.ops._dispatch import Backend, use_backend
from vlcal.ops.binning import BinStatistics, bin_statistics, group_statistics

# every op with its backends in order of preference: what `vlcal info` prints
OPS: dict[str, tuple[Backend, ...]] = {
    "bin_statistics": binning.BACKENDS,
}

__all__ = [
    "OPS",
    "BinStatistics",
    "bin_statistics",
    "group_statistics",
    "use_backend",
]

"""Fused operations for calibration, each with a plain-PyTorch oracle in `vlcal.ops.reference`."""

from vlcal.ops import binning, search
from vlcal.ops._dispatch import Backend, use_backend
from vlcal.ops.binning import BinStatistics, bin_statistics, group_statistics
from vlcal.ops.search import (
    Neighbors,
    Ranking,
    SearchIndex,
    knn,
    proximity,
    rank_vocabulary,
)

# every op with its backends in order of preference: what `vlcal info` prints
OPS: dict[str, tuple[Backend, ...]] = {
    "bin_statistics": binning.BACKENDS,
    "knn": search.BACKENDS,
    "proximity": search.BACKENDS,
    "rank_vocabulary": search.RANK_BACKENDS,
}

__all__ = [
    "OPS",
    "BinStatistics",
    "Neighbors",
    "Ranking",
    "SearchIndex",
    "bin_statistics",
    "group_statistics",
    "knn",
    "proximity",
    "rank_vocabulary",
    "use_backend",
]

"""Fused operations for calibration, each with a plain-PyTorch oracle in `vlcal.ops.reference`."""

from vlcal.ops import binning, cross_entropy, logits, search
from vlcal.ops._dispatch import Backend, use_backend
from vlcal.ops.binning import BinStatistics, bin_statistics, group_statistics
from vlcal.ops.cross_entropy import cosine_cross_entropy
from vlcal.ops.logits import (
    CalibratedSoftmax,
    LogitStatistics,
    calibrated_softmax,
    logit_statistics,
)
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
    "calibrated_softmax": logits.SOFTMAX_BACKENDS,
    "cosine_cross_entropy": cross_entropy.BACKENDS,
    "knn": search.BACKENDS,
    "logit_statistics": logits.STATISTICS_BACKENDS,
    "proximity": search.BACKENDS,
    "rank_vocabulary": search.RANK_BACKENDS,
}

__all__ = [
    "OPS",
    "BinStatistics",
    "CalibratedSoftmax",
    "LogitStatistics",
    "Neighbors",
    "Ranking",
    "SearchIndex",
    "bin_statistics",
    "calibrated_softmax",
    "cosine_cross_entropy",
    "group_statistics",
    "knn",
    "logit_statistics",
    "proximity",
    "rank_vocabulary",
    "use_backend",
]

"""Fused operations for calibration, each with a plain-PyTorch oracle in `vlcal.ops.reference`."""

from vlcal.ops import (
    binning,
    classwise,
    cross_entropy,
    density,
    equal_mass,
    logits,
    search,
    softmax,
)
from vlcal.ops._dispatch import Backend, use_backend
from vlcal.ops.binning import BinStatistics, bin_statistics, group_statistics
from vlcal.ops.classwise import ClasswiseStatistics, classwise_statistics
from vlcal.ops.cross_entropy import cosine_cross_entropy
from vlcal.ops.density import kernel_density
from vlcal.ops.equal_mass import equal_mass_statistics
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
from vlcal.ops.softmax import SoftmaxStatistics, softmax_statistics

# every op with its backends in order of preference: what `vlcal info` prints
OPS: dict[str, tuple[Backend, ...]] = {
    "bin_statistics": binning.BACKENDS,
    "calibrated_softmax": logits.SOFTMAX_BACKENDS,
    "classwise_statistics": classwise.BACKENDS,
    "cosine_cross_entropy": cross_entropy.BACKENDS,
    "equal_mass_statistics": equal_mass.BACKENDS,
    "group_statistics": binning.GROUP_BACKENDS,
    "kernel_density": density.BACKENDS,
    "knn": search.BACKENDS,
    "logit_statistics": logits.STATISTICS_BACKENDS,
    "proximity": search.BACKENDS,
    "rank_vocabulary": search.RANK_BACKENDS,
    "softmax_statistics": softmax.BACKENDS,
}

__all__ = [
    "OPS",
    "BinStatistics",
    "CalibratedSoftmax",
    "ClasswiseStatistics",
    "LogitStatistics",
    "Neighbors",
    "Ranking",
    "SearchIndex",
    "SoftmaxStatistics",
    "bin_statistics",
    "calibrated_softmax",
    "classwise_statistics",
    "cosine_cross_entropy",
    "equal_mass_statistics",
    "group_statistics",
    "kernel_density",
    "knn",
    "logit_statistics",
    "proximity",
    "rank_vocabulary",
    "softmax_statistics",
    "use_backend",
]

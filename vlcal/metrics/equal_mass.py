"""ACE: the calibration error over confidence bins of equal count."""

from __future__ import annotations

from functools import partial

from vlcal.metrics.binned import prepared
from vlcal.metrics.cells import EQUAL_MASS
from vlcal.metrics.conventions import Convention
from vlcal.metrics.derived import Derived
from vlcal.metrics.needs import undefined
from vlcal.ops import BinStatistics, equal_mass_statistics, group_statistics
from vlcal.types import Outcomes


def equal_mass_bins(outcomes: Outcomes, convention: Convention) -> tuple[BinStatistics, int]:
    """The equal-mass confidence bins of the convention, and the number of samples in all.

    Raises:
        MissingInput: the convention has no such bins.
    """
    confidence, correct = prepared(outcomes.confidence, convention), outcomes.correct
    n, n_bins = len(confidence), convention.ace_bins
    if convention.equal_mass is None:
        raise undefined("ace", "bins of equal count", convention)
    if convention.equal_mass == "whole ties":
        return equal_mass_statistics(confidence, correct, n_bins, ties="together"), n
    # samples in no bin have cell -1
    cell = EQUAL_MASS[convention.equal_mass](confidence, n_bins) + 1
    table = group_statistics(cell, confidence, correct, n_bins + 1).table[:, 1:]
    return BinStatistics(table), n


@partial(Derived, equal_mass_bins)
def ace(shared: tuple[BinStatistics, int]) -> float:
    """Adaptive calibration error: ECE over equal-mass bins of confidence.

    The bins follow `convention.equal_mass`: "whole ties" never splits samples of equal confidence,
    "quantiles" bins between interpolated percentiles. Gaps are weighted by counts, which equals the
    plain mean over bins when all counts agree.

    Nguyen and O'Connor, EMNLP 2015; Nixon et al., CVPR Workshops 2019.

    Raises:
        MissingInput: the convention has no bins of equal count.
    """
    bins, n = shared
    return float((bins.confidence - bins.correct).abs().sum()) / n


@partial(Derived, equal_mass_bins)
def ace_mean(shared: tuple[BinStatistics, int]) -> float:
    """ACE as a plain mean over the filled bins, as its authors write it.

    It differs from `ace` only where ties make the counts differ.

    Raises:
        MissingInput: the convention has no bins of equal count.
    """
    bins, _ = shared
    return float(bins.gaps().abs().sum()) / max(int((bins.count > 0).sum()), 1)

"""ACE: the calibration error over confidence bins of equal count."""

from __future__ import annotations

from vlcal.metrics.cells import EQUAL_MASS
from vlcal.metrics.conventions import Convention
from vlcal.metrics.needs import refuse_empty
from vlcal.ops import equal_mass_statistics, group_statistics
from vlcal.types import Outcomes


def ace(outcomes: Outcomes, convention: Convention) -> float:
    """Adaptive calibration error: ECE over equal-mass bins of confidence.

    The bins follow `convention.equal_mass`: "whole ties" never splits samples of equal confidence,
    "quantiles" bins between interpolated percentiles. Gaps are weighted by counts, which equals the
    plain mean over bins when all counts agree.

    Nguyen and O'Connor, EMNLP 2015; Nixon et al., CVPR Workshops 2019.
    """
    refuse_empty("ace", outcomes)
    confidence, correct, n_bins = outcomes.confidence, outcomes.correct, convention.ace_bins
    if convention.equal_mass == "whole ties":
        return equal_mass_statistics(confidence, correct, n_bins, ties="together").ece()
    cell = EQUAL_MASS[convention.equal_mass](confidence, n_bins)
    return group_statistics(cell, confidence, correct, n_bins).ece()

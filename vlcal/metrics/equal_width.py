"""ECE and MCE: gaps between confidence and accuracy in confidence bins of equal width."""

from __future__ import annotations

from vlcal.metrics.conventions import Convention
from vlcal.metrics.needs import refuse_empty
from vlcal.ops import BinStatistics, bin_statistics
from vlcal.types import Outcomes


def bins(outcomes: Outcomes, convention: Convention) -> BinStatistics:
    """The bins of the convention over all samples, 0 in the first and 1 in the last.

    This is what a reliability diagram draws.

    Raises:
        NoSamplesError: there are no samples.
    """
    refuse_empty("bins", outcomes)
    return bin_statistics(
        outcomes.confidence, outcomes.correct, convention.n_bins, closed=convention.closed
    )


def ece(outcomes: Outcomes, convention: Convention) -> float:
    """Expected calibration error: the sum over bins of (n_b / N) |confidence_b - accuracy_b|.

    With `ece_at_one="weight only"` a confidence of exactly 1 is left out of both means of the last
    bin but counted in n_b, so confident mistakes at exactly 1 cost nothing; that is the published
    code of DAC, not a recommendation.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    refuse_empty("ece", outcomes)
    every = bins(outcomes, convention)
    if convention.ece_at_one == "last bin":
        return every.ece()
    below = outcomes.confidence < 1
    kept = bin_statistics(
        outcomes.confidence[below],
        outcomes.correct[below],
        convention.n_bins,
        closed=convention.closed,
    )
    return float((every.count * kept.gaps().abs()).sum() / every.n)


def mce(outcomes: Outcomes, convention: Convention) -> float:
    """Maximum calibration error: the largest |confidence_b - accuracy_b|, however small the bin."""
    refuse_empty("mce", outcomes)
    return bins(outcomes, convention).mce()


def mce_weighted(outcomes: Outcomes, convention: Convention) -> float:
    """The largest (n_b / N) |confidence_b - accuracy_b|: the largest term of ECE.

    Published tables of DAC and ProCal print this under the name MCE. With all samples binned it is
    at most ECE and at least ECE / bins.
    """
    refuse_empty("mce_weighted", outcomes)
    every = bins(outcomes, convention)
    return float((every.confidence - every.correct).abs().max() / every.n)

"""ECE and MCE: gaps between confidence and accuracy in confidence bins of equal width."""

from __future__ import annotations

from vlcal.metrics.binned import Binned, Cell, binned
from vlcal.metrics.conventions import Convention
from vlcal.metrics.derived import OverBins
from vlcal.metrics.needs import refuse_empty
from vlcal.ops import BinStatistics
from vlcal.types import Outcomes


def bins(outcomes: Outcomes, convention: Convention) -> BinStatistics:
    """The bins of the convention over all samples, 0 in the first and 1 in the last.

    This is what a reliability diagram draws.

    Raises:
        NoSamplesError: there are no samples.
    """
    refuse_empty("bins", outcomes)
    return binned(outcomes, convention).every


@OverBins
def ece(bins: Binned) -> float:
    """Expected calibration error: the sum over bins of (n_b / N) |confidence_b - accuracy_b|.

    With `ece_at_one="weight only"` a confidence of exactly 1 is left out of both means of the last
    bin but counted in n_b, so confident mistakes at exactly 1 cost nothing; that is the published
    code of DAC, not a recommendation.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    return sum(abs(cell.share) for cell in bins.ece_cells()) / bins.n


@OverBins
def mce(bins: Binned) -> float:
    """Maximum calibration error: the largest |confidence_b - accuracy_b|, however small the bin."""
    return max((abs(cell.gap) for cell in bins.cells()), default=0.0)


@OverBins
def mce_weighted(bins: Binned) -> float:
    """The largest (n_b / N) |confidence_b - accuracy_b|: the largest term of ECE.

    Published tables of DAC and ProCal print this under the name MCE. With all samples binned it is
    at most ECE and at least ECE / bins.
    """
    return max((abs(cell.share) for cell in bins.cells()), default=0.0) / bins.n


@OverBins
def signed_gap(bins: Binned) -> float:
    """The sum over bins of (n_b / N) (confidence_b - accuracy_b): positive is over-confident.

    With every sample in a bin it is mean confidence minus accuracy, whatever the bins.
    """
    return sum(cell.share for cell in bins.ece_cells()) / bins.n


@OverBins
def overconfidence(bins: Binned) -> float:
    """The part of ECE from bins whose confidence is above their accuracy.

    With `underconfidence` it adds up to ECE, and less it to `signed_gap`.
    """
    return sum(max(cell.share, 0.0) for cell in bins.ece_cells()) / bins.n


@OverBins
def underconfidence(bins: Binned) -> float:
    """The part of ECE from bins whose confidence is below their accuracy."""
    return sum(max(-cell.share, 0.0) for cell in bins.ece_cells()) / bins.n


@OverBins
def average_ce(bins: Binned) -> float:
    """Average calibration error: the plain mean of |confidence_b - accuracy_b| over filled bins.

    Neumann et al., "Relaxed Softmax", NeurIPS workshops 2018. Some libraries call it ACE, which
    here is the error over bins of equal count.
    """
    cells = bins.cells()
    return sum(abs(cell.gap) for cell in cells) / max(len(cells), 1)


@OverBins
def rmsce(bins: Binned) -> float:
    """Root mean square calibration error: the root of the sum of (n_b / N) gap_b^2.

    Never below ECE of the same bins.
    """
    return (sum(cell.share * cell.gap for cell in bins.cells()) / bins.n) ** 0.5


@OverBins
def rmsce_debiased(bins: Binned) -> float:
    """RMSCE without the bias of few samples in a bin: gap_b^2 less a_b (1 - a_b) / (n_b - 1).

    a_b is the accuracy of the bin; a negative sum counts as 0. A bin with one sample, where the
    bias is unknown, is left out unless the convention keeps it.

    Kumar, Liang and Ma, "Verified Uncertainty Calibration", NeurIPS 2019.
    """
    kept = bins.convention.lone_samples == "kept"
    total = sum(_unbiased(cell, kept) for cell in bins.cells())
    return max(total / bins.n, 0.0) ** 0.5


def _unbiased(cell: Cell, keeps_lone: bool) -> float:
    if cell.count == 1:
        return cell.gap**2 if keeps_lone else 0.0
    accuracy = cell.correct / cell.count
    return cell.count * (cell.gap**2 - accuracy * (1 - accuracy) / (cell.count - 1))

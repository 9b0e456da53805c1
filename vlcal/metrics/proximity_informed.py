"""PIECE: the calibration error over groups of similar confidence and similar proximity."""

from __future__ import annotations

from vlcal.metrics.cells import EQUAL_MASS, equal_width
from vlcal.metrics.conventions import Convention
from vlcal.metrics.needs import need, undefined
from vlcal.ops import group_statistics
from vlcal.types import Outcomes


def piece(outcomes: Outcomes, convention: Convention) -> float:
    """Proximity-informed ECE: the sum over groups of (n_g / N) |confidence_g - accuracy_g|.

    A group is a pair of an equal-mass bin of proximity and an equal-width bin of confidence. Never
    below the ECE of the same confidence bins, because gaps of opposite sign in one confidence bin
    no longer cancel.

    Xiong et al., "Proximity-Informed Calibration for Deep Neural Networks", NeurIPS 2023.

    Raises:
        MissingInput: the outcomes carry no proximity, or the convention has no bins of it.
    """
    near_bins = convention.piece_proximity_bins
    if convention.equal_mass is None or near_bins is None:
        raise undefined("piece", "bins of proximity", convention)
    proximity = need("piece", outcomes, "proximity").to(outcomes.confidence.device)
    near = EQUAL_MASS[convention.equal_mass](proximity, near_bins)
    width = convention.piece_confidence_bins
    sure = equal_width(outcomes.confidence, width, convention.closed)
    groups = near_bins * width
    return group_statistics(
        near * width + sure, outcomes.confidence, outcomes.correct, groups
    ).ece()

"""Named conventions: the bins, the closed side, the rule at 1, so that numbers can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Convention:
    """Everything that two implementations of the same metric disagree about, as data.

    Edges of equal-width bins are `numpy.linspace(0, 1, bins + 1)` in float64 everywhere.

    Args:
        name: what is printed beside every number.
        about: one sentence for people.
        source: where the rules come from.
        n_bins: equal-width confidence bins of ECE and MCE.
        closed: side on which these bins and those of PIECE are closed.
        ece_at_one: what ECE does with a confidence of exactly 1: in the last bin, or left out of
            its means while still counted in its weight.
        equal_mass: rule of bins with equal counts, in ACE and for the proximity of PIECE; see
            `vlcal.metrics.cells`.
        ace_bins: bins of ACE.
        piece_confidence_bins: equal-width confidence bins of PIECE.
        piece_proximity_bins: equal-mass proximity bins of PIECE.
    """

    name: str
    about: str
    source: str
    n_bins: int = 15
    closed: Literal["right", "left"] = "right"
    ece_at_one: Literal["last bin", "weight only"] = "last bin"
    equal_mass: Literal["whole ties", "quantiles"] = "whole ties"
    ace_bins: int = 15
    piece_confidence_bins: int = 15
    piece_proximity_bins: int = 10


STANDARD = Convention(
    name="standard",
    about="15 bins of equal width (lo, hi], 0 in the first and 1 in the last; ties are never split",
    source="Guo et al., On Calibration of Modern Neural Networks, ICML 2017",
)

DAC2024 = Convention(
    name="dac2024",
    about="10 bins of equal width [lo, hi); ECE weighs a confidence of 1 but leaves out its gap; "
    "published tables call mce_weighted MCE",
    source="code of Wang et al., Open-Vocabulary Calibration for Fine-tuned CLIP, ICML 2024",
    n_bins=10,
    closed="left",
    ece_at_one="weight only",
    equal_mass="quantiles",
    ace_bins=10,
    piece_confidence_bins=10,
    piece_proximity_bins=10,
)

CONVENTIONS = (STANDARD, DAC2024)


def convention(name: str | Convention) -> Convention:
    """The convention of that name; a `Convention` comes back as it is.

    Raises:
        ValueError: the name is not known; the message lists those that are.
    """
    if isinstance(name, Convention):
        return name
    known = {each.name: each for each in CONVENTIONS}
    if name not in known:
        raise ValueError(f"convention: unknown name {name!r}; known: {', '.join(known)}")
    return known[name]

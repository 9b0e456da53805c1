"""Named conventions: edges, closed sides, rules at 0 and 1, so that numbers can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Convention:
    """Everything that two implementations of the same metric disagree about, as data.

    A metric whose rule is None here is not defined under the convention and is left out.

    Args:
        name: what is printed beside every number.
        about: one sentence for people.
        source: where the rules come from.
        n_bins: equal-width confidence bins of ECE, MCE and all other metrics over bins.
        closed: side on which these bins and those of PIECE are closed.
        edges: of the equal-width bins. "numpy" is `numpy.linspace(0, 1, bins + 1)`, "torch float32"
            and "torch float64" are `torch.linspace` in that precision (the arrays differ in the
            last bit), "ceil" puts q into bin ceil(bins q - 1) in the precision of q.
        precision: confidences are rounded or widened to it before anything else; None takes them as
            they are.
        clip: confidences are clipped to eps..1 - eps of their precision before anything else.
        at_zero: a confidence of exactly 0 is in the first bin, or in none while still counted in N.
        at_one: a confidence of exactly 1 is in the last bin, or in a bin of its own.
        ece_at_one: what ECE does with a confidence of exactly 1: as `at_one`, or left out of its
            means while still counted in its weight.
        batch_size: metrics over bins are means over batches of so many rows in the order given,
            weighted by their sizes; None measures all rows at once.
        lone_samples: whether the debiased RMSCE keeps the squared gap of a bin with one sample,
            whose bias cannot be estimated.
        equal_mass: rule of bins with equal counts, in ACE and for the proximity of PIECE; see
            `vlcal.metrics.cells`.
        ace_bins: bins of ACE.
        piece_confidence_bins: equal-width confidence bins of PIECE.
        piece_proximity_bins: equal-mass proximity bins of PIECE.
        neighbors: hold-out images averaged over in the proximity of an image.
        proximity: exp(-mean distance), or mean exp(-squared distance).
        classwise: classes that class-wise ECE averages over.
        theirs: pairs of the name of a number in the source and the name of the same number here.
    """

    name: str
    about: str
    source: str
    n_bins: int = 15
    closed: Literal["right", "left"] = "right"
    edges: Literal["numpy", "torch float32", "torch float64", "ceil"] = "numpy"
    precision: Literal["float32", "float64"] | None = None
    clip: bool = False
    at_zero: Literal["first bin", "no bin"] = "first bin"
    at_one: Literal["last bin", "extra bin"] = "last bin"
    ece_at_one: Literal["last bin", "weight only"] = "last bin"
    batch_size: int | None = None
    lone_samples: Literal["left out", "kept"] = "left out"
    equal_mass: Literal["whole ties", "quantiles", "interpolated ranks"] | None = "whole ties"
    ace_bins: int = 15
    piece_confidence_bins: int = 15
    piece_proximity_bins: int | None = 10
    neighbors: int = 5
    proximity: Literal["exp of mean", "mean of exp of squares"] = "exp of mean"
    classwise: Literal["all classes", "up to the largest label"] = "all classes"
    theirs: tuple[tuple[str, str], ...] = ()


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
    theirs=(("ECE", "ece"), ("MCE", "mce_weighted"), ("AdaptiveECE", "ace"), ("PIECE", "piece")),
)

PROCAL = Convention(
    name="procal",
    about="15 bins of equal width [lo, hi), 1 in the last; published tables call mce_weighted MCE; "
    "proximity is the mean of exp(-squared distance) to 10 images",
    source="code of Xiong et al., Proximity-Informed Calibration for Deep Neural Networks, "
    "NeurIPS 2023",
    closed="left",
    equal_mass="quantiles",
    neighbors=10,
    proximity="mean of exp of squares",
    theirs=(
        ("ECE", "ece"),
        ("MCE", "mce_weighted"),
        ("AdaptiveECE", "ace"),
        ("PIECE", "piece"),
        ("auc", "auroc"),
    ),
)

CLIPCALIB = Convention(
    name="clipcalib",
    about="15 bins of equal width (lo, hi] of float32 confidences, 0 in none; the smallest "
    "confidence is in no bin of ACE; class-wise ECE ends at the largest label",
    source="loss classes in the code of Murugesan et al., Robust Calibration of Large "
    "Vision-Language Adapters, ECCV 2024",
    edges="torch float32",
    precision="float32",
    at_zero="no bin",
    equal_mass="interpolated ranks",
    piece_proximity_bins=None,
    classwise="up to the largest label",
    theirs=(
        ("ECELoss", "ece"),
        ("AdaptiveECELoss", "ace"),
        ("ClasswiseECELoss", "classwise_ece"),
        ("ThreshClasswiseECELoss", "classwise_ece_thresholded"),
    ),
)

CLIPCALIB10 = Convention(
    name="clipcalib10",
    about="10 bins, confidence q in bin ceil(10 q - 1) in float32; there a confidence of 0 fails, "
    "here it is in the first bin",
    source="functions in the code of Murugesan et al., Robust Calibration of Large "
    "Vision-Language Adapters, ECCV 2024",
    n_bins=10,
    edges="ceil",
    precision="float32",
    equal_mass=None,
    piece_proximity_bins=None,
    theirs=(
        ("expected_calibration_error", "ece"),
        ("maximum_calibration_error", "mce"),
        ("average_calibration_error", "average_ce"),
    ),
)

CTPT20 = Convention(
    name="ctpt20",
    about="20 bins of equal width (lo, hi] between float32 edges, 0 in none",
    source="code of Yoon et al., C-TPT: Calibrated Test-Time Prompt Tuning for Vision-Language "
    "Models via Text Feature Dispersion, ICLR 2024",
    n_bins=20,
    edges="torch float32",
    at_zero="no bin",
    equal_mass=None,
    piece_proximity_bins=None,
    theirs=(("ECE_Loss", "ece"),),
)

TORCHMETRICS = Convention(
    name="torchmetrics",
    about="15 bins of equal width [lo, hi) of float32 confidences between float32 edges, and a "
    "16th bin for 1",
    source="torchmetrics 1.9, MulticlassCalibrationError",
    closed="left",
    edges="torch float32",
    precision="float32",
    at_one="extra bin",
    lone_samples="kept",
    equal_mass=None,
    piece_proximity_bins=None,
    theirs=(("norm='l1'", "ece"), ("norm='max'", "mce"), ("norm='l2'", "rmsce")),
)

CAROT = Convention(
    name="carot",
    about="the mean over batches of 512 rows of torchmetrics' ECE with 10 bins: it depends on the "
    "order of the rows and is never below that of all rows at once",
    source="code of Oh et al., Towards Calibrated Robust Fine-Tuning of Vision-Language Models, "
    "NeurIPS 2024",
    n_bins=10,
    closed="left",
    edges="torch float32",
    precision="float32",
    at_one="extra bin",
    batch_size=512,
    lone_samples="kept",
    equal_mass=None,
    piece_proximity_bins=None,
    theirs=(("ece", "ece"),),
)

# of float32 arrays it takes weights between float64 edges and means between float32 edges
NETCAL = Convention(
    name="netcal",
    about="10 bins of equal width [lo, hi) of float64 confidences clipped to eps..1 - eps; what it "
    "calls ACE is average_ce",
    source="netcal 1.4, ECE, MCE and ACE",
    n_bins=10,
    closed="left",
    precision="float64",
    clip=True,
    equal_mass=None,
    piece_proximity_bins=None,
    theirs=(("ECE", "ece"), ("MCE", "mce"), ("ACE", "average_ce")),
)

CONVENTIONS = (
    STANDARD,
    DAC2024,
    PROCAL,
    CLIPCALIB,
    CLIPCALIB10,
    CTPT20,
    TORCHMETRICS,
    CAROT,
    NETCAL,
)


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

"""Does confidence tell right from wrong: AUROC, and the risk of answering only when sure."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlcal.metrics.conventions import Convention
from vlcal.metrics.derived import Derived
from vlcal.metrics.needs import MissingInput, refuse_empty
from vlcal.types import Outcomes


class RiskCoverage(NamedTuple):
    """What is answered and how much of it is wrong, one entry per distinct confidence, all [R].

    Answering where confidence >= `threshold` (descending) answers `answered` samples, `wrong` of
    them wrongly, which is a share `coverage` of all with the error rate `risk`. Samples of equal
    confidence are answered together. All on the CPU.
    """

    threshold: Tensor
    answered: Tensor
    wrong: Tensor

    @property
    def coverage(self) -> Tensor:
        """Share of samples answered, float64 in (0, 1]; its last entry is 1."""
        return self.answered / self.answered[-1].double()

    @property
    def risk(self) -> Tensor:
        """Error rate among the answered, float64 in 0..1; its last entry is 1 - accuracy."""
        return self.wrong / self.answered.double()

    def risk_at(self, coverage: float) -> float:
        """Expected error rate when the surest share `coverage` of the samples is answered.

        Which samples of equal confidence are among them is left to chance.

        Raises:
            ValueError: coverage is not in (0, 1].
        """
        if not 0 < coverage <= 1:
            raise ValueError(f"risk_at: coverage must be in (0, 1], got {coverage}")
        size = coverage * int(self.answered[-1])
        wrong = np.interp(size, _from_zero(self.answered), _from_zero(self.wrong))
        return float(wrong) / size

    def at_risk(self, risk: float) -> tuple[float, float]:
        """Threshold and coverage that answer most with an error rate of at most `risk`.

        For a precision of 95 % ask for a risk of 0.05. (inf, 0.0) if no threshold reaches it.
        """
        reached = (self.risk <= risk).nonzero()
        if len(reached) == 0:
            return math.inf, 0.0
        last = int(reached[-1])
        return float(self.threshold[last]), float(self.coverage[last])


def risk_coverage(outcomes: Outcomes) -> RiskCoverage:
    """The risk-coverage curve: error rate against the share of samples that are answered.

    El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 2010.

    Raises:
        NoSamplesError: there are no samples.
        ValueError: a confidence is NaN or outside 0..1.

    One sort of the confidences; order and batch split of the samples change nothing.
    """
    refuse_empty("risk_coverage", outcomes)
    confidence = outcomes.confidence.detach()
    lowest, highest = (float(end) for end in confidence.aminmax())
    if not 0 <= lowest <= highest <= 1:
        raise ValueError(
            f"risk_coverage: confidence must be in 0..1 and not NaN, got {lowest}..{highest}"
        )
    if confidence.dtype != torch.float64:
        confidence = confidence.float()
    bits = torch.int64 if confidence.dtype == torch.float64 else torch.int32
    # the bits of numbers >= 0 are ordered as they are, and 0..1 leaves room for one bit more
    keys = (confidence + 0.0).view(bits) * 2 + outcomes.correct.to(bits)
    surest_first = keys.sort().values.flip(0).cpu().numpy()
    value = surest_first >> 1
    ends = np.flatnonzero(np.append(value[1:] != value[:-1], True))
    wrong = ends + 1 - np.cumsum(surest_first & 1, dtype=np.int64)[ends]
    threshold = torch.from_numpy(value[ends]).view(confidence.dtype)
    return RiskCoverage(threshold, torch.from_numpy(ends + 1), torch.from_numpy(wrong))


def _from_zero(sums: Tensor) -> np.ndarray:
    return np.append(0, sums.numpy())


def _curve(outcomes: Outcomes, convention: Convention) -> RiskCoverage:
    return risk_coverage(outcomes)


@partial(Derived, _curve)
def auroc(curve: RiskCoverage) -> float:
    """Probability that a correct sample is surer than a wrong one, in 0..1; a tie counts half.

    The area under the ROC curve of detecting misclassification by confidence (Hendrycks and
    Gimpel, ICLR 2017), exact with ties; the same under every convention.

    Raises:
        MissingInput: all samples are correct, or all are wrong.
    """
    n, n_wrong = int(curve.answered[-1]), int(curve.wrong[-1])
    if n_wrong in (0, n):
        raise MissingInput(
            f"auroc: needs correct and wrong samples, got {n - n_wrong} correct and {n_wrong} wrong"
        )
    wrong = np.diff(_from_zero(curve.wrong))
    right = np.diff(_from_zero(curve.answered)) - wrong
    # twice the wrong ones that are less sure, ties once
    beaten = 2 * (n_wrong - curve.wrong.numpy()) + wrong
    return int(np.dot(right, beaten)) / (2 * n_wrong * (n - n_wrong))


@partial(Derived, _curve)
def aurc(curve: RiskCoverage) -> float:
    """Area under the risk-coverage curve: the mean over k = 1..N of the risk of the k surest.

    Samples of equal confidence are taken in the expectation over their orders, so that the order of
    the rows changes nothing. Smaller is better; a model that is never wrong has 0.

    Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.
    """
    answered, wrong = _from_zero(curve.answered), _from_zero(curve.wrong)
    n = int(answered[-1])
    # of s answered samples E are wrong; in a run of m with e wrong ones the k-th of all has a risk
    # of (E + e (k - s) / m) / k, and the sum over the run is (E - e s / m) (H(s + m) - H(s)) + e
    harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, n + 1)))[answered]
    slope = np.diff(wrong) / np.diff(answered)
    apart = (wrong[:-1] - slope * answered[:-1]) * np.diff(harmonic)
    return max(float(apart.sum()) + int(wrong[-1]), 0.0) / n

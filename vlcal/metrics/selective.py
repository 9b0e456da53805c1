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
    confidence are answered together.
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
    keys = _sorted((confidence + 0.0).view(bits) * 2 + outcomes.correct.to(bits)).flip(0)
    value, right = keys >> 1, keys & 1
    last = torch.ones_like(value, dtype=torch.bool)
    torch.ne(value[1:], value[:-1], out=last[:-1])
    ends = last.nonzero()[:, 0]
    wrong = ends + 1 - right.cumsum(0, dtype=torch.int64)[ends]
    return RiskCoverage(value[ends].view(confidence.dtype), ends + 1, wrong)


def _sorted(keys: Tensor) -> Tensor:
    # NumPy sorts integers with vector instructions
    return keys.sort().values if keys.is_cuda else torch.from_numpy(np.sort(keys.numpy()))


def _from_zero(sums: Tensor) -> np.ndarray:
    return np.concatenate([[0], sums.cpu().numpy()])


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
    wrong = curve.wrong.diff(prepend=torch.zeros_like(curve.wrong[:1]))
    right = curve.answered.diff(prepend=torch.zeros_like(wrong[:1])) - wrong
    # twice the wrong ones that are less sure, ties once
    beaten = 2 * (n_wrong - curve.wrong) + wrong
    return int((right * beaten).sum()) / (2 * n_wrong * (n - n_wrong))


@partial(Derived, _curve)
def aurc(curve: RiskCoverage) -> float:
    """Area under the risk-coverage curve: the mean over k = 1..N of the risk of the k surest.

    Samples of equal confidence are taken in the expectation over their orders, so that the order of
    the rows changes nothing. Smaller is better; a model that is never wrong has 0.

    Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.
    """
    answered, wrong = curve.answered.double(), curve.wrong.double()
    size = torch.arange(1, int(answered[-1]) + 1, dtype=torch.float64, device=answered.device)
    if len(answered) == len(size):
        return float((wrong / size).mean())
    zero = torch.zeros_like(wrong[:1])
    run = torch.repeat_interleave(curve.answered.diff(prepend=zero.long()))
    start, before = torch.cat([zero, answered])[run], torch.cat([zero, wrong])[run]
    slope = (wrong.diff(prepend=zero) / answered.diff(prepend=zero))[run]
    return float(((before + slope * (size - start)) / size).mean())

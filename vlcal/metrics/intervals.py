"""How far to trust a number: an interval of ECE from its bins, and of the accuracy of one bin."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

from vlcal.ops import BinStatistics
from vlcal.types import NoSamplesError


def ece_interval(
    bins: BinStatistics,
    generator: torch.Generator,
    *,
    level: float = 0.95,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of ECE from the bin statistics alone.

    Each resample draws the bin counts from a multinomial and the correct ones of every bin from a
    binomial; the mean confidence of a bin stays what it is. Cost is resamples x bins, whatever N.
    ECE is biased upwards, and its resamples more so: the interval says how much ECE would move with
    other samples, not where the error of the model lies.

    Args:
        bins: of at least one sample.
        generator: a CPU generator; the same state gives the same interval.
        level: probability inside, in (0, 1).
        resamples: number of bootstrap resamples.

    Raises:
        NoSamplesError: the bins are empty.
        ValueError: level is not in (0, 1).
    """
    if bins.n == 0:
        raise NoSamplesError("ece_interval: needs at least one sample, got none")
    if not 0 < level < 1:
        raise ValueError(f"ece_interval: level must be in (0, 1), got {level}")
    full = bins.count.cpu() > 0
    count = bins.count.cpu()[full].double()
    confidence = bins.confidence.cpu()[full] / count
    drawn = _multinomial(count, resamples, generator)
    right = (bins.correct.cpu()[full] / count).expand_as(drawn).contiguous()
    correct = torch.binomial(drawn, right, generator=generator)
    errors = (drawn * confidence - correct).abs().sum(-1) / bins.n
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = errors.quantile(tails).tolist()
    return low, high


def _multinomial(count: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """Bin counts [resamples, B] of as many samples: a chain of conditional binomials."""
    left = count.sum().repeat(resamples)
    drawn = []
    for size, rest in zip(count, count.flip(0).cumsum(0).flip(0), strict=True):
        share = (size / rest).repeat(resamples)
        drawn.append(torch.binomial(left, share, generator=generator))
        left = left - drawn[-1]
    return torch.stack(drawn, dim=-1)


def wilson_interval(correct: Tensor, count: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Wilson score interval of accuracies: low and high, float64, of the shape of `count`.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927. Stays in
    0..1 and is honest for few samples; 0..1 for none.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    n = count.double().clamp(min=1)
    rate = correct.double() / n
    center = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (rate * (1 - rate) / n + z * z / (4 * n * n)).sqrt()
    low, high = (center - half).clamp(min=0), (center + half).clamp(max=1)
    return torch.where(count > 0, low, 0.0), torch.where(count > 0, high, 1.0)

"""How far to trust a number: intervals of metrics from their bins, and of the accuracy of one."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

from vlcal.metrics.binned import Binned
from vlcal.metrics.derived import OverBins
from vlcal.ops import BinStatistics
from vlcal.ops.reference import CONFIDENCE_UNIT
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
    _check("ece_interval", bins.n, level)
    full = bins.count > 0
    count = bins.count[full].cpu().double()
    confidence = bins.confidence[full].cpu() / count
    drawn, correct = _draw(count, bins.correct[full].cpu().double(), resamples, generator)
    errors = (drawn * confidence - correct).abs().sum(-1) / bins.n
    return _percentiles(errors, level)


def interval(
    bins: Binned,
    metric: OverBins,
    generator: torch.Generator,
    *,
    level: float = 0.95,
    resamples: int = 1000,
) -> tuple[float, float]:
    """The same for any metric over bins: ECE, MCE, signed gap, accuracy and the others.

    Args:
        bins: `vlcal.metrics.binned` of at least one sample.
        metric: of them; a convention that averages batches is measured over all rows at once.
        generator: a CPU generator; the same state gives the same interval.
        level: probability inside, in (0, 1).
        resamples: number of bootstrap resamples.

    Raises:
        NoSamplesError: the bins are empty.
        ValueError: level is not in (0, 1).
    """
    _check("interval", bins.n, level)
    values = [metric.formula(each) for each in _resampled(bins, resamples, generator)]
    return _percentiles(torch.tensor(values, dtype=torch.float64), level)


def difference_interval(
    first: Binned,
    second: Binned,
    metric: OverBins,
    generator: torch.Generator,
    *,
    level: float = 0.95,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the metric of `first` minus that of `second`.

    Both are resampled on their own, which is right for two sets of images, as base and new classes
    are. For two calibrators on the same images it is too wide: bins do not know which samples are
    the same.

    Args:
        first: bins of at least one sample.
        second: bins of at least one sample.
        metric: of them.
        generator: a CPU generator; the same state gives the same interval.
        level: probability inside, in (0, 1).
        resamples: number of bootstrap resamples.

    Raises:
        NoSamplesError: one of the bins is empty.
        ValueError: level is not in (0, 1).
    """
    _check("difference_interval", min(first.n, second.n), level)
    drawn = [_resampled(bins, resamples, generator) for bins in (first, second)]
    values = [metric.formula(one) - metric.formula(two) for one, two in zip(*drawn, strict=True)]
    return _percentiles(torch.tensor(values, dtype=torch.float64), level)


def _check(who: str, n: int, level: float) -> None:
    if n == 0:
        raise NoSamplesError(f"{who}: needs at least one sample, got none")
    if not 0 < level < 1:
        raise ValueError(f"{who}: level must be in (0, 1), got {level}")


def _percentiles(values: Tensor, level: float) -> tuple[float, float]:
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = values.quantile(tails).tolist()
    return low, high


def _resampled(bins: Binned, resamples: int, generator: torch.Generator) -> list[Binned]:
    """Bins of as many samples drawn with replacement, confidences of a bin at their mean."""
    table = bins.every.table.cpu().clone()
    n_bins = table.shape[1]
    # what the convention treats apart is drawn as two cells more
    apart = torch.tensor(
        [[*bins.zeros, 0], [*bins.ones, bins.ones[0] * round(1 / CONFIDENCE_UNIT)]]
    ).T
    table[:, 0] -= apart[:, 0]
    table[:, -1] -= apart[:, 1]
    table = torch.cat([table, apart], dim=1).double()
    mean = table[2] / table[0].clamp(min=1)
    count, correct = _draw(table[0], table[1], resamples, generator)
    every = torch.stack([count, correct, (count * mean).round()], dim=1).long()
    whole = every[:, :, :n_bins].clone()
    whole[:, :, 0] += every[:, :, n_bins]
    whole[:, :, -1] += every[:, :, n_bins + 1]
    cells = every[:, :2, n_bins:].transpose(1, 2).tolist()
    edges, closed = bins.every.edges, bins.every.closed
    return [
        Binned(BinStatistics(table, edges, closed), tuple(zeros), tuple(ones), bins.convention)
        for table, (zeros, ones) in zip(whole, cells, strict=True)
    ]


def _draw(
    count: Tensor, correct: Tensor, resamples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Counts and correct ones of resamples, both [resamples, B]."""
    drawn = _multinomial(count, resamples, generator)
    right = (correct / count.clamp(min=1)).expand_as(drawn).contiguous()
    return drawn, torch.binomial(drawn, right, generator=generator)


def _multinomial(count: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """Bin counts [resamples, B] of as many samples: a chain of conditional binomials."""
    left = count.sum().repeat(resamples)
    drawn = []
    for size, rest in zip(count, count.flip(0).cumsum(0).flip(0), strict=True):
        share = (size / rest.clamp(min=1)).repeat(resamples)
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

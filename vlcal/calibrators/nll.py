"""The mean NLL as a function of the inverse temperature: its slope, and sums that give it later."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlcal.calibrators.base import content_hash, need
from vlcal.types import Predictions

if TYPE_CHECKING:
    from typing_extensions import Self

BLOCK_BYTES = 1 << 20  # of float32 logits, so that every temperature finds them in the cache


def nll_slope(val: Predictions | Iterable[Predictions], inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean NLL at an inverse temperature, summed in float64.

    They are the means of E_p[logit] - logit of the label and of Var_p[logit], with
    p = softmax(inverse * logits).
    """
    parts = [val] if isinstance(val, Predictions) else val
    n, slopes, curvatures = _sums(parts, torch.tensor([inverse], dtype=torch.float64))
    return float(slopes) / max(n, 1), float(curvatures) / max(n, 1)


def _sums(parts: Iterable[Predictions], inverse: Tensor) -> tuple[int, Tensor, Tensor]:
    """Number of samples; sums of their slopes and of their curvatures at every inverse [G]."""
    n, slopes, curvatures = 0, torch.zeros_like(inverse), torch.zeros_like(inverse)
    for part in parts:
        need("ts", part, "labels")
        assert part.labels is not None
        n += len(part)
        for rows, block in part.blocks(BLOCK_BYTES):
            logits = block.double()
            # from the largest, so that the moments of a sure row do not cancel
            logits = logits - logits.amax(-1, keepdim=True)
            chosen = logits.gather(-1, part.labels[rows, None].to(logits.device))[:, 0]
            squares = logits.square()
            for j, beta in enumerate(inverse.tolist()):
                weights = (logits * beta).exp_()
                total = weights.sum(-1)
                mean = torch.linalg.vecdot(weights, logits) / total
                second = torch.linalg.vecdot(weights, squares) / total
                slopes[j] += (mean - chosen).sum().cpu()
                curvatures[j] += (second - mean.square()).clamp(min=0).sum().cpu()
    return n, slopes, curvatures


@dataclass(frozen=True, eq=False)
class TemperatureSums:
    """What one pass over a shard keeps for `TemperatureScaling.fit_sums`; shards add up with `+`.

    The sums of slope and curvature of the NLL on a grid of inverse temperatures, evenly spaced in
    the logarithm. Between its points the slope is interpolated by cubics, which puts temperatures
    off by up to 4e-6 of themselves at the default spacing, 4e-7 at half of it, on the data seen so
    far. Sums are float64: shards give what the whole gives, up to the order of additions.

    Args:
        grid: inverse temperatures [G], float64.
        n: samples.
        slope: [G] sums over samples of E_p[logit] - logit of the label.
        curvature: [G] sums over samples of Var_p[logit].
        fitted_on: content hashes of the shards.
    """

    grid: Tensor
    n: int
    slope: Tensor
    curvature: Tensor
    fitted_on: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        val: Predictions,
        *,
        lowest: float = 1 / 30,
        highest: float = 30.0,
        points: int = 65,
    ) -> Self:
        """The sums of labeled predictions.

        Args:
            val: predictions with labels; N may be 0.
            lowest: smallest temperature of the grid.
            highest: largest temperature of the grid.
            points: of the grid; every one costs a softmax of all logits.

        Raises:
            ValueError: there are no labels, or the grid is none.
        """
        if not (0 < lowest < highest < math.inf and points >= 2):
            raise ValueError(
                "TemperatureSums: 0 < lowest < highest and points >= 2 must hold, "
                f"got {lowest}, {highest} and {points}"
            )
        ends = -math.log(highest), -math.log(lowest)
        grid = torch.linspace(*ends, points, dtype=torch.float64).exp()
        n, slope, curvature = _sums([val], grid)
        return cls(grid, n, slope, curvature, (content_hash(val),) if n else ())

    def __add__(self, other: TemperatureSums) -> TemperatureSums:
        if not torch.equal(self.grid, other.grid):
            raise ValueError(
                "TemperatureSums: sums add up on the same grid only, got "
                f"{_about(self.grid)} and {_about(other.grid)}"
            )
        return TemperatureSums(
            self.grid,
            self.n + other.n,
            self.slope + other.slope,
            self.curvature + other.curvature,
            self.fitted_on + other.fitted_on,
        )

    def at(self, inverse: float) -> tuple[float, float]:
        """`nll_slope` at an inverse temperature inside the grid, interpolated."""
        last = len(self.grid) - 2
        j = min(max(int(torch.searchsorted(self.grid, inverse)) - 1, 0), last)
        a, b = (math.log(each) for each in self.grid[j : j + 2].tolist())
        y0, y1 = (self.slope[j : j + 2] / self.n).tolist()
        # by the logarithm, as the grid is: d slope / d log(inverse) = inverse * curvature
        d0, d1 = (self.grid * self.curvature / self.n * (b - a))[j : j + 2].tolist()
        t = (math.log(inverse) - a) / (b - a)
        cubic, square = 2 * (y0 - y1) + d0 + d1, 3 * (y1 - y0) - 2 * d0 - d1
        value = ((cubic * t + square) * t + d0) * t + y0
        slope = (3 * cubic * t + 2 * square) * t + d0
        return value, slope / (b - a) / inverse


def _about(grid: Tensor) -> str:
    return f"{len(grid)} temperatures in {1 / float(grid[-1]):g}..{1 / float(grid[0]):g}"

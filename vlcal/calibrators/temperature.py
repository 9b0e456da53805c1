"""Temperature scaling: one factor on all logits, found exactly.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vlcal.calibrators.base import NotFitted, RowScaling, content_hash, need
from vlcal.types import BLOCK_BYTES, NoSamplesError, Predictions, VlcalWarning

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class TemperatureScaling(RowScaling):
    """Divide all logits by the temperature that minimizes the validation NLL.

    The NLL is convex in the inverse temperature, so its derivative has one root; a Newton iteration
    kept inside a shrinking bracket finds it to about 1e-12 in float64, one pass over blocks of
    logits per step. There is nothing to tune and no way not to converge.

    Where every sample is right the best temperature is 0, where logits carry no information it is
    infinite: `fit` then stops at the bound and warns.

    Args:
        lowest: smallest temperature considered.
        highest: largest temperature considered.
    """

    name: ClassVar[str] = "ts"
    keeps_argmax: ClassVar[bool] = True
    handles_new_classes: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("labels",)

    lowest: float = 1e-3
    highest: float = 1e3

    temperature_: float | None = field(default=None, init=False)
    fitted_on_: str | tuple[str, ...] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest < math.inf:
            raise ValueError(
                "ts: 0 < lowest < highest must hold for the temperature, "
                f"got {self.lowest} and {self.highest}"
            )

    def fit(self, val: Predictions) -> Self:
        """Find the temperature on labeled validation predictions.

        Raises:
            ValueError: there are no labels.
            NoSamplesError: there are no samples.
        """
        need("ts", val, "labels")
        if len(val) == 0:
            raise NoSamplesError("ts: fit needs at least one sample, got none")
        self.temperature_ = 1 / self._solve(val)
        self.fitted_on_ = content_hash(val)
        return self

    def scale(self, test: Predictions) -> tuple[Tensor | None, Tensor | None]:
        """The factor 1 / temperature of all rows, and no factors by predicted class."""
        if self.temperature_ is None:
            raise NotFitted("ts: fit comes before transform")
        return torch.tensor(1 / self.temperature_, dtype=torch.float64), None

    def _solve(self, val: Predictions) -> float:
        low, high = 1 / self.highest, 1 / self.lowest
        slope, curvature = nll_slope(val, low)
        if slope == 0 and curvature == 0:
            _warn("all logits of a row are equal, every temperature has the same NLL", 1.0)
            return 1.0
        if slope >= 0:
            _warn("the logits tell nothing about the labels, hotter is always better", self.highest)
            return low
        if nll_slope(val, high)[0] <= 0:
            _warn("every sample is right, colder is always better", self.lowest)
            return high
        return _root(val, math.log(low), math.log(high))


def nll_slope(val: Predictions, inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean NLL at an inverse temperature, summed in float64.

    They are the means of E_p[logit] - logit of the label and of Var_p[logit], with
    p = softmax(inverse * logits).
    """
    assert val.labels is not None
    slope = curvature = 0.0
    for rows, block in val.blocks(BLOCK_BYTES // 8):
        logits = block.double()
        probs = (logits * inverse).softmax(-1)
        mean = (probs * logits).sum(-1, keepdim=True)
        chosen = logits.gather(-1, val.labels[rows, None].to(logits.device))
        slope += float((mean - chosen).sum())
        curvature += float((probs * (logits - mean).square_()).sum())
    return slope / len(val), curvature / len(val)


def _root(val: Predictions, low: float, high: float) -> float:
    """The inverse temperature whose slope is 0, given log bounds of opposite sign."""
    at = min(max(0.0, low), high)
    step = high - low
    while True:
        slope, curvature = nll_slope(val, math.exp(at))
        low, high = (at, high) if slope < 0 else (low, at)
        # d slope / d log(inverse) = inverse * curvature
        newton = -slope / (math.exp(at) * curvature) if curvature > 0 else math.inf
        # bisect where Newton leaves the bracket or no longer halves the step
        inside = low < at + newton < high and abs(newton) < abs(step) / 2
        step = newton if inside or abs(newton) < 1e-9 else (low + high) / 2 - at
        at += step
        if abs(step) < 1e-9:  # the next one would be about its square
            return math.exp(at)


def _warn(why: str, temperature: float) -> None:
    warnings.warn(
        f"ts: {why}; the temperature is set to {temperature:g}",
        VlcalWarning,
        stacklevel=4,
    )

"""Temperature scaling: one factor on all logits, found exactly.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from vlcal.calibrators.base import NotFitted, RowScaling, content_hash, need
from vlcal.calibrators.nll import TemperatureSums, nll_slope
from vlcal.types import NoSamplesError, Predictions, VlcalWarning

if TYPE_CHECKING:
    from typing_extensions import Self

# slope and curvature of the mean NLL at an inverse temperature
Slope = Callable[[float], tuple[float, float]]


@dataclass
class TemperatureScaling(RowScaling):
    """Divide all logits by the temperature that minimizes the validation NLL.

    The NLL is convex in the inverse temperature, so its derivative has one root; a Newton iteration
    kept inside a shrinking bracket finds it to about 1e-12 in float64, one pass over blocks of
    logits per step. There is nothing to tune and no way not to converge.

    Where every sample is right the best temperature is 0, where logits carry no information it is
    infinite: `fit` then stops at the bound and warns, as where the best one is beyond it.

    Args:
        lowest: smallest temperature considered.
        highest: largest temperature considered.
        solver: "exact", or "sgd", which repeats the published 20 epochs of stochastic gradient
            descent in validation order and ends near the minimum, not on it (see `replay`).
        half: with "sgd", keep the logarithm of the scale in float16 as the published code does;
            it then moves in steps of about 0.4 percent.
    """

    name: ClassVar[str] = "ts"
    keeps_argmax: ClassVar[bool] = True
    handles_new_classes: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("labels",)

    lowest: float = 1e-3
    highest: float = 1e3
    solver: Literal["exact", "sgd"] = "exact"
    half: bool = False

    temperature_: float | None = field(default=None, init=False)
    fitted_on_: str | tuple[str, ...] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest < math.inf:
            raise ValueError(
                "ts: 0 < lowest < highest must hold for the temperature, "
                f"got {self.lowest} and {self.highest}"
            )
        if self.solver not in ("exact", "sgd"):
            raise ValueError(f"ts: solver must be one of exact, sgd, got {self.solver!r}")
        if self.half and self.solver == "exact":
            raise ValueError("ts: half=True belongs to solver='sgd', got solver='exact'")

    def fit(self, val: Predictions) -> Self:
        """Find the temperature on labeled validation predictions.

        Raises:
            ValueError: there are no labels, or for "sgd" no logit scale.
            NoSamplesError: there are no samples.
        """
        need("ts", val, "labels")
        _refuse_none(len(val))
        if self.solver == "sgd":
            self.temperature_ = replay(val, half=self.half)
        else:
            self._find(lambda inverse: nll_slope(val, inverse), self.lowest, self.highest)
        self.fitted_on_ = content_hash(val)
        return self

    def fit_stream(self, parts: Callable[[], Iterable[Predictions]]) -> Self:
        """`fit` on validation predictions that come in parts and are never held together.

        Args:
            parts: gives them anew on every call; it is called about eight times. For what can be
                read only once there is `TemperatureSums`.

        Raises:
            ValueError: the solver is "sgd", a part has no labels, or a later call gives other
                numbers of samples.
            NoSamplesError: there are no samples.
        """
        if self.solver == "sgd":
            raise ValueError("ts: fit_stream needs solver='exact', got solver='sgd'")
        seen = [(len(part), content_hash(part)) for part in parts() if len(part)]
        _refuse_none(len(seen))
        sizes = [size for size, _ in seen]

        def checked() -> Iterable[Predictions]:
            again = []
            for part in parts():
                if len(part):
                    again.append(len(part))
                    yield part
            if again != sizes:
                raise ValueError(
                    "ts: fit_stream needs parts that are the same on every call (not an iterator "
                    f"that is used up), got {sum(sizes)} samples first and {sum(again)} later"
                )

        self._find(lambda inverse: nll_slope(checked(), inverse), self.lowest, self.highest)
        self.fitted_on_ = tuple(digest for _, digest in seen)
        return self

    def fit_sums(self, sums: TemperatureSums) -> Self:
        """Find the temperature from the sums of shards, within the bounds of their grid.

        Raises:
            ValueError: the solver is "sgd".
            NoSamplesError: there are no samples.
        """
        if self.solver == "sgd":
            raise ValueError("ts: fit_sums needs solver='exact', got solver='sgd'")
        _refuse_none(sums.n)
        inverse = sums.grid.tolist()
        bounds = max(self.lowest, 1 / inverse[-1]), min(self.highest, 1 / inverse[0])
        self._find(sums.at, *bounds)
        self.fitted_on_ = sums.fitted_on
        return self

    def scale(self, test: Predictions) -> tuple[Tensor | None, Tensor | None]:
        """The factor 1 / temperature of all rows, and no factors by predicted class."""
        if self.temperature_ is None:
            raise NotFitted("ts: fit comes before transform")
        return torch.tensor(1 / self.temperature_, dtype=torch.float64), None

    def _find(self, slope_at: Slope, lowest: float, highest: float) -> None:
        low, high = 1 / highest, 1 / lowest
        slope, curvature = slope_at(low)
        if slope == 0 and curvature == 0:
            _warn("all logits of a row are equal, every temperature has the same NLL", 1.0)
            self.temperature_ = 1.0
        elif slope >= 0:
            _warn(
                "the logits tell nothing about the labels, hotter is always better",
                highest,
            )
            self.temperature_ = highest
        elif slope_at(high)[0] <= 0:
            _warn("every sample is right, colder is always better", lowest)
            self.temperature_ = lowest
        else:
            self.temperature_ = 1 / _root(slope_at, math.log(low), math.log(high))


def _root(slope_at: Slope, low: float, high: float) -> float:
    """The inverse temperature whose slope is 0, given log bounds of opposite sign."""
    at = min(max(0.0, low), high)
    step = high - low
    while True:
        slope, curvature = slope_at(math.exp(at))
        low, high = (at, high) if slope < 0 else (low, at)
        # d slope / d log(inverse) = inverse * curvature
        newton = -slope / (math.exp(at) * curvature) if curvature > 0 else math.inf
        # bisect where Newton leaves the bracket or no longer halves the step
        inside = low < at + newton < high and abs(newton) < abs(step) / 2
        step = newton if inside or abs(newton) < 1e-9 else (low + high) / 2 - at
        at += step
        if abs(step) < 1e-9:  # the next one would be about its square
            return math.exp(at)


def _refuse_none(n: int) -> None:
    if n == 0:
        raise NoSamplesError("ts: fit needs at least one sample, got none")


def _warn(why: str, temperature: float) -> None:
    warnings.warn(
        f"ts: {why}; the temperature is set to {temperature:g}",
        VlcalWarning,
        stacklevel=4,
    )


def replay(val: Predictions, *, half: bool = False, epochs: int = 20) -> float:
    """The temperature that the published stochastic gradient descent ends at.

    It learns the logarithm of the logit scale: batches of 100 in the order of the rows, rate 0.05
    with momentum 0.9 and weight decay 5e-4, a first epoch at 1e-5 that only fills the momentum,
    then a cosine. Wang et al., "Open-Vocabulary Calibration for Fine-tuned CLIP", ICML 2024.

    Args:
        val: predictions with labels and the logit scale the logits were multiplied by.
        half: keep the parameter, its gradient and momentum in float16.
        epochs: passes over the rows.

    Raises:
        ValueError: there is no logit scale.
    """
    need("ts: solver='sgd'", val, "logit_scale")
    assert val.logit_scale is not None
    dtype = torch.float16 if half else torch.float64
    log_scale = torch.nn.Parameter(torch.tensor(math.log(val.logit_scale), dtype=dtype))
    optimizer = torch.optim.SGD([log_scale], lr=1.0, momentum=0.9, weight_decay=5e-4)
    batches = torch.arange(len(val)).split(100)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate(epoch, epochs)
        for rows in batches:
            inverse = float(log_scale.detach().exp()) / val.logit_scale
            slope, _ = nll_slope(val.select(rows), inverse)
            log_scale.grad = torch.tensor(slope * inverse, dtype=dtype)
            optimizer.step()
    return val.logit_scale / float(log_scale.detach().exp())


def rate(epoch: int, epochs: int, base: float = 0.05) -> float:
    """Learning rate of an epoch, counted from 0: 1e-5 first, then a cosine from `base`."""
    if epoch == 0:
        return 1e-5
    return base * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))

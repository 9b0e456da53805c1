"""Density ratio: how often rows of like confidence and proximity were right.

Xiong et al., "Proximity-Informed Calibration for Deep Neural Networks", NeurIPS 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from vlcal.calibrators.base import NotFitted, need
from vlcal.calibrators.probabilities import (
    ProbabilityMap,
    ProbabilityMapping,
    check_choice,
    check_labeled,
    with_top,
)
from vlcal.ops import calibrated_softmax, kernel_density, knn, proximity, softmax_statistics
from vlcal.types import Predictions

if TYPE_CHECKING:
    from typing_extensions import Self

FEWEST = 3  # correct, and wrong, rows that a bandwidth can be taken from


@dataclass
class DensityRatio(ProbabilityMap):
    """Replace the confidence by the share of correct rows among those like it.

    At x = (confidence, image proximity) it becomes p1(x) / max(p1(x) + r p0(x), epsilon), with p1
    and p0 the densities of correct and wrong validation rows and r = wrong / correct. They are
    product Gaussian kernels with the bandwidth 1.06 std n^(-1/6) in each dimension (Silverman;
    n the rows of the set, std divided by n). The predicted class gets that probability, the others
    are scaled to sum to the rest; where they are all 0, as beside a confidence of 1, they share it
    evenly.

    Nothing ties it to classes, so new ones are handled. The predicted class changes wherever the
    new confidence falls below the share of another class: in 5 to 67 percent of the rows of four
    genuine sets. Where half of them change, accuracy falls by some points and the class that takes
    over is too sure; `keep_argmax` prevents that. Far from all validation rows both densities
    vanish and the confidence becomes 0.

    Args:
        k: validation images that proximity looks at.
        proximity: "exp of mean", exp(-mean distance) as published for CLIP, or "mean of exp", the
            mean of exp(-squared distance), with k = 10 in the paper above.
        bandwidth: factor of the bandwidths.
        epsilon: smallest denominator, in units of the densities.
        keep_argmax: never let the confidence fall below that of the runner-up.
        exclude_self: no image of `fit` is its own neighbor, when its predictions are transformed
            as in `fit`; False as in the published code. Images are recognized as a whole set.
    """

    name: ClassVar[str] = "den"
    handles_new_classes: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("labels", "image_features")

    k: int = 5
    proximity: Literal["exp of mean", "mean of exp"] = "exp of mean"
    bandwidth: float = 1.0
    epsilon: float = 1e-10
    keep_argmax: bool = False
    exclude_self: bool = True

    correct_: Tensor | None = field(default=None, init=False, repr=False)
    wrong_: Tensor | None = field(default=None, init=False, repr=False)
    bandwidths_: Tensor | None = field(default=None, init=False, repr=False)
    image_features_: Tensor | None = field(default=None, init=False, repr=False)
    fitted_on_: tuple[str, ...] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("den", "proximity", self.proximity, ("exp of mean", "mean of exp"))
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"den: k must be an integer >= 1, got {self.k!r}")
        for option in ("bandwidth", "epsilon"):
            if not 0 < getattr(self, option) < math.inf:
                raise ValueError(
                    f"den: {option} must be positive and finite, got {getattr(self, option)}"
                )

    @property
    def keeps_argmax(self) -> bool:
        """Whether `keep_argmax` is set."""
        return self.keep_argmax

    def fit(self, val: Predictions) -> Self:
        """Remember confidence and proximity of correct and of wrong validation rows.

        Raises:
            ValueError: there are no labels or image features, no more than k rows, fewer than
                three correct or three wrong ones, or ones without spread.
            NoSamplesError: there are no samples.
        """
        seen = check_labeled("den", val)
        need("den", val, "image_features")
        assert val.image_features is not None and val.labels is not None
        if len(val) <= self.k:
            raise ValueError(
                f"den: k must be in 1..{len(val) - 1} (the other validation images), got {self.k}"
            )
        confidence, predicted = _top(val)
        near = self._proximity(val.image_features, val.image_features, exclude_self=True)
        correct = predicted == val.labels.to(predicted.device)
        self.fit_points(torch.stack([confidence.to(near), near], -1), correct)
        self.image_features_, self.fitted_on_ = val.image_features.detach(), (seen,)
        return self

    def fit_points(self, points: Tensor, correct: Tensor) -> Self:
        """The same for rows whose confidence and proximity are known.

        Afterwards `at` is ready; `transform` needs the image features that `fit` keeps.

        Args:
            points: [N, 2] floating point, confidence and proximity.
            correct: [N] bool.

        Raises:
            ValueError: fewer than three rows are correct or wrong, or either are without spread.
        """
        right, wrong = points[correct], points[~correct]
        if min(len(right), len(wrong)) < FEWEST:
            raise ValueError(
                f"den: needs at least {FEWEST} correct and {FEWEST} wrong validation rows, "
                f"got {len(right)} and {len(wrong)}; more rows, or ts, which needs neither"
            )
        widths = self._bandwidths(right, "correct"), self._bandwidths(wrong, "wrong")
        self.correct_, self.wrong_, self.bandwidths_ = right, wrong, torch.stack(widths)
        self.image_features_ = self.fitted_on_ = None
        return self

    def at(self, points: Tensor) -> Tensor:
        """The new confidence [N] float64 at confidence and proximity [N, 2].

        Raises:
            NotFitted: there is nothing learned.
        """
        if self.correct_ is None or self.wrong_ is None or self.bandwidths_ is None:
            raise NotFitted("den: fit comes before transform")
        right, wrong, (first, second) = self.correct_, self.wrong_, self.bandwidths_
        p1 = kernel_density(points, right.to(points.device), first).double()
        p0 = kernel_density(points, wrong.to(points.device), second).double()
        return p1 / (p1 + len(wrong) / len(right) * p0).clamp(min=self.epsilon)

    def mapping(self, test: Predictions) -> ProbabilityMapping:
        """Give every predicted class its new confidence."""
        need("den", test, "image_features")
        assert test.image_features is not None
        if self.image_features_ is None:
            raise NotFitted("den: fit comes before transform")
        features, keys = test.image_features, self.image_features_.to(test.image_features.device)
        same = self.exclude_self and features.shape == keys.shape and torch.equal(features, keys)
        near = self._proximity(features, keys, exclude_self=same)
        confidence, _ = _top(test)
        wanted = self.at(torch.stack([confidence.to(near), near], -1))

        def replace_top(probs: Tensor, rows: slice) -> Tensor:
            given, predicted = wanted[rows].to(probs), probs.argmax(-1)
            if self.keep_argmax:
                given = given.maximum(_level(probs, predicted))
            return with_top(probs, predicted, given)

        return replace_top

    def check_loaded(self) -> None:
        """Refuse learned values of a file that do not fit together.

        Raises:
            ValueError: they do not.
        """
        right, wrong, widths = self.correct_, self.wrong_, self.bandwidths_
        features = self.image_features_
        if all(each is None for each in (right, wrong, widths, features)):
            return
        pairs = all(_is_matrix(each, 2) for each in (right, wrong, widths))
        if not pairs or right is None or wrong is None or widths is None:
            raise ValueError("den: points and bandwidths must be finite pairs")
        if len(widths) != 2 or not bool((widths > 0).all()):
            raise ValueError("den: bandwidths must be positive, [2, 2]")
        n = len(right) + len(wrong)
        if features is not None and not (_is_matrix(features) and len(features) == n):
            raise ValueError(f"den: image features must be [{n}, D], one row for every point")

    def _proximity(self, features: Tensor, keys: Tensor, exclude_self: bool) -> Tensor:
        """[N] float32."""
        if self.proximity == "exp of mean":
            return proximity(features, keys, self.k, exclude_self=exclude_self)
        distance = knn(features, keys, self.k, exclude_self=exclude_self).distance
        return distance.double().square().neg().exp().mean(-1).float()

    def _bandwidths(self, points: Tensor, which: str) -> Tensor:
        """[2] float64."""
        spread = points.double().std(0, correction=0)
        for name, value in zip(("confidence", "proximity"), spread.tolist(), strict=True):
            if value == 0:
                raise ValueError(
                    f"den: all {len(points)} {which} validation rows have the same {name}, "
                    "so it has no density; ts needs none"
                )
        return self.bandwidth * 1.06 * spread * len(points) ** (-1 / 6)


def _is_matrix(value: Any, columns: int | None = None) -> bool:
    """Whether it is floating point, finite and has two dimensions."""
    good = isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 2
    fits = good and columns in (None, value.shape[1])
    return fits and bool(torch.isfinite(value).all())


def _top(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Confidence and predicted class of every row, without probabilities N x C."""
    image, text = predictions.image_features, predictions.text_features
    if predictions.logits is not None:
        seen = softmax_statistics(predictions.logits)
    else:
        assert image is not None and text is not None and predictions.logit_scale is not None
        seen = calibrated_softmax(
            image,
            text,
            predictions.logit_scale,
            row_scale=predictions.row_scale,
            predicted_scale=predictions.predicted_scale,
        )
    return seen.confidence.clamp(max=1), seen.predicted


def _level(probs: Tensor, predicted: Tensor) -> Tensor:
    """[R] the confidence at which the runner-up, scaled with all others, draws level; just above.

    (1 - c) r / t = c for the runner-up's probability r and the sum t of all others.
    """
    others = probs.scatter(1, predicted[:, None], 0.0)
    runner, total = others.amax(-1), others.sum(-1)
    even = 1 / probs.shape[1]
    level = torch.where(total > 0, runner / (runner + total).where(total > 0, 1.0), even)
    return level * (1 + 1e-6)

"""Distance-aware calibration: less confidence for new classes that moved away from base classes.

Wang et al., "Open-Vocabulary Calibration for Fine-tuned CLIP", ICML 2024.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlcal.calibrators.base import NotFitted, RowScaling, need
from vlcal.ops import knn
from vlcal.types import Predictions

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class DistanceAware(RowScaling):
    """Scale the logits of each image by how far tuning moved its predicted class.

    The factor of class c is exp(d0(c) - d(c)), where d and d0 are the mean distances from c to its
    k nearest base classes in the tuned and in the zero-shot text space. Tuning that spreads text
    features gives factors below 1. Base classes keep factor 1. No labels and no images are used.

    Args:
        k: base classes averaged over.
        exempt: which classes keep factor 1: "membership", those whose name is a base class;
            "distance", those whose nearest tuned base feature is closer than `same_class`, as in
            the published code; "none".
        same_class: that distance.
        exclude_self: leave a base class out of its own neighbors (matters with exempt="none").
        clamp: let no factor exceed 1.
        renormalize: bring text features to unit norm first; False reproduces tuners that report an
            average of unit vectors.
        few_classes: what to do with fewer than k base classes: "refuse", "all" (average over those
            there are) or "divide by k" (sum over those there are, divide by k: the published code).
        dtype: "float16" rounds features, distances, means and factors as the published code does;
            the same up to a few float16 steps, not bit by bit.
    """

    name: ClassVar[str] = "dac"
    keeps_argmax: ClassVar[bool] = True
    handles_new_classes: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("text_features", "zero_shot", "class_names")

    k: int = 5
    exempt: Literal["membership", "distance", "none"] = "membership"
    same_class: float = 0.05
    exclude_self: bool = False
    clamp: bool = False
    renormalize: bool = True
    few_classes: Literal["refuse", "all", "divide by k"] = "refuse"
    dtype: Literal["float32", "float16"] = "float32"

    text_features_: Tensor | None = field(default=None, init=False, repr=False)
    zero_shot_text_features_: Tensor | None = field(default=None, init=False, repr=False)
    class_names_: tuple[str, ...] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        choices = {
            "exempt": ("membership", "distance", "none"),
            "few_classes": ("refuse", "all", "divide by k"),
            "dtype": ("float32", "float16"),
        }
        for option, known in choices.items():
            if getattr(self, option) not in known:
                raise ValueError(
                    f"dac: {option} must be one of {', '.join(known)}, "
                    f"got {getattr(self, option)!r}"
                )
        if self.k < 1:
            raise ValueError(f"dac: k must be at least 1, got {self.k}")

    @classmethod
    def dac2024(cls) -> Self:
        """The options of the published code, all of them.

        Its zero-shot features of DTD come from two templates; which are meant is the choice of who
        makes the predictions.
        """
        return cls(exempt="distance", few_classes="divide by k", dtype="float16", renormalize=False)

    def fit(self, val: Predictions) -> Self:
        """Remember the text features of the base classes, tuned and zero-shot.

        Raises:
            ValueError: text features of either model, or needed class names, are missing; or there
                are fewer base classes than k.
        """
        tuned, zero_shot = self._features(val)
        others = len(tuned) - self.exclude_self
        if others < 1 or (others < self.k and self.few_classes == "refuse"):
            raise ValueError(
                f"dac: k must be in 1..{others} (the number of base classes to compare with), got "
                f"{self.k}; a smaller k, few_classes='all' or few_classes='divide by k' is the way "
                "out"
            )
        self.text_features_, self.zero_shot_text_features_ = tuned, zero_shot
        self.class_names_ = val.class_names
        return self

    def scale(self, test: Predictions) -> tuple[Tensor | None, Tensor | None]:
        """No factors of rows; the factors [C] by predicted class, float32."""
        if self.text_features_ is None or self.zero_shot_text_features_ is None:
            raise NotFitted("dac: fit comes before transform")
        tuned, zero_shot = self._features(test)
        own = self._own(test).to(tuned.device)
        nearest, mean = self._distances(tuned, self.text_features_, own)
        _, mean_zero_shot = self._distances(zero_shot, self.zero_shot_text_features_, own)
        if self.dtype == "float16":
            factor = ((-mean).exp() / (-mean_zero_shot).exp()).float()
        else:
            factor = (mean_zero_shot - mean).exp()
        if self.clamp:
            factor = factor.clamp(max=1)
        if self.exempt == "membership":
            factor = torch.where(own >= 0, 1.0, factor)
        elif self.exempt == "distance":
            factor = torch.where(nearest < self.same_class, 1.0, factor)
        return None, factor

    def _features(self, predictions: Predictions) -> tuple[Tensor, Tensor]:
        need("dac", predictions, "text_features", "zero_shot")
        assert predictions.zero_shot is not None
        need("dac: zero_shot", predictions.zero_shot, "text_features")
        if self._by_name() and predictions.class_names is None:
            raise ValueError(
                "dac: needs class_names to recognize base classes, got none; "
                "exempt='distance' recognizes them by their features"
            )
        tuned, zero_shot = predictions.text_features, predictions.zero_shot.text_features
        assert tuned is not None and zero_shot is not None
        return self._prepare(tuned), self._prepare(zero_shot)

    def _prepare(self, features: Tensor) -> Tensor:
        features = features.detach().float()
        if self.renormalize:
            features = normalize(features, dim=-1)
        return features.half().float() if self.dtype == "float16" else features

    def _by_name(self) -> bool:
        return self.exempt == "membership" or self.exclude_self

    def _own(self, test: Predictions) -> Tensor:
        """[C] position of every class among the base classes, -1 for a new class."""
        if not self._by_name():
            return torch.full((test.n_classes,), -1)
        assert self.class_names_ is not None and test.class_names is not None
        position = {name: index for index, name in enumerate(self.class_names_)}
        return torch.tensor([position.get(name, -1) for name in test.class_names])

    def _distances(self, queries: Tensor, base: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of every class to its nearest base class, and the mean over its k nearest."""
        base = base.to(queries.device)
        k = min(self.k, len(base) - self.exclude_self)
        near = knn(queries, base, k + self.exclude_self)
        distance = near.distance
        if self.exclude_self:
            # the own row, if it is among them, moves behind the others
            last = (near.index == own[:, None]).int().argsort(dim=-1, stable=True)
            distance = distance.gather(-1, last)[:, :k]
        if self.dtype == "float16":
            distance = distance.half()
        divisor = self.k if self.few_classes == "divide by k" else k
        return distance[:, 0].float(), distance.sum(-1) / divisor

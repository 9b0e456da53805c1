"""Proximity-binned calibration: one calibrator for lonely images, others for images in company.

Xiong et al., "Proximity-Informed Calibration for Deep Neural Networks", NeurIPS 2023, where it is
called bin mean shift.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from vlcal.calibrators.base import NotFitted, need, probabilities
from vlcal.calibrators.histogram import HistogramBinning
from vlcal.calibrators.isotonic import IsotonicRegression, MultiIsotonic
from vlcal.calibrators.probabilities import (
    ProbabilityMap,
    ProbabilityMapping,
    check_choice,
    check_labeled,
)
from vlcal.ops import proximity
from vlcal.ops.binning import check_bins
from vlcal.types import Predictions

if TYPE_CHECKING:
    from typing_extensions import Self

Base = HistogramBinning | IsotonicRegression | MultiIsotonic
BASES: dict[str, type[Base]] = {
    each.name: each for each in (HistogramBinning, IsotonicRegression, MultiIsotonic)
}


@dataclass
class ProximityBinned(ProbabilityMap):
    """Sort images into bins by their proximity to validation images, and calibrate each bin.

    The proximity of an image is exp(-mean distance to its k nearest validation images), validation
    images themselves left out. Edges of the bins are percentiles of the proximities of validation
    images (linear interpolation, closed on the left); images outside are in the bins at the ends.

    Args:
        base: calibrator of each bin: "hb", "ir", "mir", or such an object, whose options all bins
            take over. With few samples a bin, "hb" and "ir" give many classes probability 0.
        n_bins: proximity bins.
        k: neighbors averaged over; the papers use 5, and 10 for ImageNet.
        fewest: samples that every bin must have in `fit`.
        exclude_self: where the images to calibrate are the validation images, leave each out of its
            own neighbors, as `fit` does; the published code does not.
        softmax: "double" applies softmax to the probabilities once more before everything else, as
            the published code does. No entry is then above e / (C - 1 + e), below 0.1 from 26
            classes on: "hb" with ten bins gives all images of a proximity bin the same
            probabilities.
    """

    name: ClassVar[str] = "pb"
    needs: ClassVar[tuple[str, ...]] = ("labels", "image_features")

    base: str | Base = "mir"
    n_bins: int = 5
    k: int = 5
    fewest: int = 2
    exclude_self: bool = True
    softmax: Literal["single", "double"] = "single"

    edges_: Tensor | None = field(default=None, init=False, repr=False)
    image_features_: Tensor | None = field(default=None, init=False, repr=False)
    calibrators_: list[Base] | None = field(default=None, init=False, repr=False)
    fitted_on_: tuple[str, ...] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_bins(self.name, self.n_bins)
        check_choice(self.name, "softmax", self.softmax, ("single", "double"))
        if self.k < 1 or self.fewest < 1:
            raise ValueError(
                f"pb: k and fewest must be at least 1, got k={self.k} and fewest={self.fewest}"
            )
        if isinstance(self.base, str):
            check_choice(self.name, "base", self.base, tuple(BASES))
        elif not isinstance(self.base, tuple(BASES.values())):
            raise ValueError(
                f"pb: base must be one of {', '.join(BASES)} or such an object, "
                f"got {type(self.base).__name__}"
            )

    @property
    def keeps_argmax(self) -> bool:
        """Whether the base does."""
        return self._unfitted().keeps_argmax

    @property
    def handles_new_classes(self) -> bool:
        """Whether the base does."""
        return self._unfitted().handles_new_classes

    def fit(self, val: Predictions) -> Self:
        """Learn the edges and fit one calibrator on the validation images of each bin.

        Raises:
            ValueError: labels or image features are missing, there are not more images than k, or
                a bin has too few samples.
            NoSamplesError: there are no samples.
        """
        seen = check_labeled(self.name, val)
        need(self.name, val, "image_features")
        assert val.image_features is not None
        if len(val) <= self.k:
            raise ValueError(
                f"pb: k must be below the number of validation images, got k={self.k} and "
                f"{len(val)} images"
            )
        features = val.image_features.detach().float()
        near = proximity(features, features, self.k, exclude_self=True)
        edges = np.percentile(near.double().cpu().numpy(), np.linspace(0, 100, self.n_bins + 1))
        self.edges_ = torch.from_numpy(edges)
        bins = self._bins(self.edges_, near)
        self._refuse_small(bins)
        self.calibrators_ = [
            self._unfitted().fit(self._input(val, (bins == each).nonzero()[:, 0]))
            for each in range(self.n_bins)
        ]
        self.image_features_, self.fitted_on_ = features, (seen,)
        return self

    def mapping(self, test: Predictions) -> ProbabilityMapping:
        """Apply to every row the calibrator of its bin."""
        if self.edges_ is None or self.calibrators_ is None:
            raise NotFitted(f"{self.name}: fit comes before transform")
        bins = self._bins(self.edges_, self.proximity(test))
        maps = [each.mapping(test) for each in self.calibrators_]

        def by_bin(probs: Tensor, rows: slice) -> Tensor:
            if self.softmax == "double":
                probs = probs.softmax(-1)
            here, made = bins[rows].to(probs.device), None
            for each in here.unique().tolist():
                chosen = (here == each).nonzero()[:, 0]
                part = maps[each](probs[chosen], rows)
                made = part.new_empty(probs.shape) if made is None else made
                made[chosen] = part
            return probs if made is None else made

        return by_bin

    def proximity(self, test: Predictions) -> Tensor:
        """Proximity [N] of images to the validation images, float32.

        Raises:
            NotFitted: there are no validation images yet.
            ValueError: the predictions have no image features.
        """
        if self.image_features_ is None:
            raise NotFitted(f"{self.name}: fit comes before transform")
        need(self.name, test, "image_features")
        assert test.image_features is not None
        features = test.image_features.detach().float()
        keys = self.image_features_.to(features.device)
        same = features.shape == keys.shape and torch.equal(features, keys)
        return proximity(features, keys, self.k, exclude_self=same and self.exclude_self)

    def check_loaded(self) -> None:
        """Refuse learned values that do not fit together."""
        learned = (self.edges_, self.image_features_, self.calibrators_)
        edges, features, calibrators = cast("tuple[Any, Any, Any]", learned)
        if all(each is None for each in learned):
            return
        if (
            not isinstance(edges, Tensor)
            or not isinstance(features, Tensor)
            or not isinstance(calibrators, list)
            or edges.shape != (self.n_bins + 1,)
            or features.ndim != 2
            or not features.is_floating_point()
            or len(features) <= self.k
            or len(calibrators) != self.n_bins
            or not all(type(each) is type(self._unfitted()) for each in calibrators)
        ):
            raise ValueError(
                f"pb: edges, image features and calibrators of {self.n_bins} bins do not fit "
                "together"
            )

    def _unfitted(self) -> Base:
        return BASES[self.base]() if isinstance(self.base, str) else replace(self.base)

    def _input(self, val: Predictions, rows: Tensor) -> Predictions:
        part = val.select(rows)
        return part.with_logits(probabilities(part)) if self.softmax == "double" else part

    def _bins(self, edges: Tensor, near: Tensor) -> Tensor:
        """The number of interior edges that are not above each proximity."""
        interior = edges[1:-1].to(near.device).contiguous()
        return torch.bucketize(near.double(), interior, right=True)

    def _refuse_small(self, bins: Tensor) -> None:
        count = torch.bincount(bins, minlength=self.n_bins)
        if int(count.min()) < self.fewest:
            raise ValueError(
                f"pb: each of the {self.n_bins} proximity bins needs {self.fewest} validation "
                f"samples or more, got {int(count.min())} of {len(bins)} in bin "
                f"{int(count.argmin())}; fewer bins (n_bins=) or more validation images are the "
                "way out, and so is a smaller k where many images have the same proximity"
            )

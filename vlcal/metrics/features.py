"""What tuning did to the text features: how far they moved, how they spread, what they are near."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vlcal.ops import knn, proximity
from vlcal.types import Predictions


class FeatureReport(NamedTuple):
    """Text features before and after tuning, columns over the classes [C] float32.

    `moved` is the distance from the zero-shot to the tuned feature; `divergence` the mean distance
    of the tuned feature to its nearest other classes; `proximity` exp(-mean distance) to the
    nearest base classes, None without base classes; `spread` the mean distance of the tuned
    features from their mean. `zero_shot_...` are the same before tuning.
    """

    moved: Tensor
    divergence: Tensor
    zero_shot_divergence: Tensor
    proximity: Tensor | None
    zero_shot_proximity: Tensor | None
    spread: float
    zero_shot_spread: float

    @property
    def ratio(self) -> Tensor | None:
        """Tuned over zero-shot proximity, what distance-aware calibration scales by."""
        if self.proximity is None or self.zero_shot_proximity is None:
            return None
        return self.proximity / self.zero_shot_proximity


def feature_report(
    tested: Predictions, base: Predictions | None = None, *, k: int = 5
) -> FeatureReport:
    """How tuning moved the text features of the tested classes.

    The divergence score is used to explain over-confidence on new classes by Wang et al. (dynamic
    outlier regularization), the spread is the dispersion of Yoon et al., "C-TPT", ICLR 2024, and
    proximity that of Wang et al., "Open-Vocabulary Calibration for Fine-tuned CLIP", ICML 2024.

    Args:
        tested: with text features and a zero-shot twin with text features; at least two classes.
        base: the same for the base classes.
        k: neighbors averaged over, fewer where there are not so many classes.

    Raises:
        ValueError: features are missing, there is one class, or k < 1.
    """
    tuned, frozen = _texts("tested", tested)
    if len(tuned) < 2 or k < 1:
        raise ValueError(
            f"feature_report: needs at least two classes and k >= 1, got {len(tuned)} and k = {k}"
        )
    near = zero_shot_near = None
    if base is not None:
        tuned_base, frozen_base = _texts("base", base)
        near = proximity(tuned, tuned_base, min(k, len(tuned_base)))
        zero_shot_near = proximity(frozen, frozen_base, min(k, len(frozen_base)))
    return FeatureReport(
        (tuned - frozen).norm(dim=-1),
        _divergence(tuned, k),
        _divergence(frozen, k),
        near,
        zero_shot_near,
        _spread(tuned),
        _spread(frozen),
    )


def _texts(which: str, predictions: Predictions) -> tuple[Tensor, Tensor]:
    twin = predictions.zero_shot
    tuned, frozen = predictions.text_features, None if twin is None else twin.text_features
    if tuned is None or frozen is None:
        raise ValueError(
            f"feature_report: {which} needs text_features, and a zero_shot with text_features"
        )
    return tuned.float(), frozen.float()


def _divergence(texts: Tensor, k: int) -> Tensor:
    return knn(texts, texts, min(k, len(texts) - 1), exclude_self=True).distance.mean(-1)


def _spread(texts: Tensor) -> float:
    return float((texts - texts.mean(0)).norm(dim=-1).mean())

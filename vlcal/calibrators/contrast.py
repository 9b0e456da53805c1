"""Contrast-aware calibration: less confidence where tuning moved the outputs of an image.

"Contrast-Aware Calibration for Fine-Tuned CLIP: Leveraging Image-Text Alignment", 2025. No code was
published; what the text leaves open is an option here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from vlcal.calibrators.base import RowScaling, need, plain_features
from vlcal.ops import logit_statistics
from vlcal.types import Predictions

if TYPE_CHECKING:
    from typing_extensions import Self

LOWEST = 1e-6  # a factor of 0 would lose the order of the row
ROUNDING = 1e-6  # a mean difference of cosines, or a sum of those of probabilities, of equal models


@dataclass
class ContrastAware(RowScaling):
    """Scale the logits of each image by how far tuning moved its outputs over all classes.

    With z the mean over classes of |zero-shot output - tuned output| and gamma = alpha exp(-k z),
    the factor is gamma for lower <= gamma <= upper and gamma^2 elsewhere. No labels, no fit; base
    and new classes alike. Put it first in a chain: what earlier steps did to the logits counts as
    tuning.

    An untuned model has z = 0 and, with the defaults, the factor 1.21: the method makes it surer.

    Args:
        alpha: factor of an unmoved row before squaring, > 0.
        k: how fast the factor falls, per unit of z; 1 is "without k", >= 0.
        lower: gamma below it is squared.
        upper: gamma above it is squared.
        unit: of the outputs. "cosine", which the constants fit; "scaled", times the logit scale,
            as tables of logits have them; "probability", after softmax.
        decay: "exponential" or "linear": gamma = alpha (1 - k z), the first-order form. What the
            paper's ablation without the exponential did is not said.
        piecewise: square outside lower..upper; False is "without piecewise".
        centered: leave out of the differences of a row what they have in common, which softmax does
            not see. The paper's z counts it: a tuned model whose cosines are all 0.03 higher loses
            half of its scale.
        untuned: "scale" rows that tuning did not move as the formula says, or "keep" them.
    """

    name: ClassVar[str] = "cac"
    keeps_argmax: ClassVar[bool] = True
    handles_new_classes: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("zero_shot",)

    alpha: float = 1.10
    k: float = 15.0
    lower: float = 0.90
    upper: float = 1.00
    unit: Literal["cosine", "scaled", "probability"] = "cosine"
    decay: Literal["exponential", "linear"] = "exponential"
    piecewise: bool = True
    centered: bool = False
    untuned: Literal["scale", "keep"] = "scale"

    def __post_init__(self) -> None:
        choices = {
            "unit": ("cosine", "scaled", "probability"),
            "decay": ("exponential", "linear"),
            "untuned": ("scale", "keep"),
        }
        for option, known in choices.items():
            if getattr(self, option) not in known:
                raise ValueError(
                    f"cac: {option} must be one of {', '.join(known)}, "
                    f"got {getattr(self, option)!r}"
                )
        if not (self.alpha > 0 and self.k >= 0 and 0 < self.lower <= self.upper):
            raise ValueError(
                "cac: alpha > 0, k >= 0 and 0 < lower <= upper must hold, got "
                f"alpha={self.alpha}, k={self.k}, lower={self.lower}, upper={self.upper}"
            )

    def fit(self, val: Predictions) -> Self:
        """Learn nothing; check that validation predictions have their zero-shot twin."""
        need("cac", val, "zero_shot")
        return self

    def scale(self, test: Predictions) -> tuple[Tensor | None, Tensor | None]:
        """The factors [N] of rows, and none by predicted class."""
        moved = self.contrast(test)
        factor = self.factor(moved)
        if self.untuned == "keep":
            rounding = {
                "cosine": ROUNDING,
                "scaled": ROUNDING * (test.logit_scale or 1.0),
                "probability": ROUNDING / test.n_classes,
            }
            factor = torch.where(moved <= rounding[self.unit], 1.0, factor)
        return factor.float(), None

    def contrast(self, test: Predictions) -> Tensor:
        """Mean over classes of |zero-shot output - tuned output|: the z of each row, in `unit`.

        Raises:
            ValueError: there are no zero-shot predictions, or no logit scale to get cosines from
                stored logits.
        """
        need("cac", test, "zero_shot")
        assert test.zero_shot is not None
        models = (test, test.zero_shot)
        if self.unit == "cosine":
            for who, model in zip(("cac", "cac: zero_shot"), models, strict=True):
                need(f"{who}: unit='cosine'", model, "logit_scale")
        if self.unit != "probability" and all(model.logits is None for model in models):
            return self._fused(*models)
        pairs = zip(test.blocks(), test.zero_shot.blocks(), strict=True)
        blocks = [
            self._difference(self._outputs(test, a), self._outputs(test.zero_shot, b))
            for (_, a), (_, b) in pairs
        ]
        return torch.cat(blocks) if blocks else torch.zeros(0)

    def factor(self, contrast: Tensor) -> Tensor:
        """The factor of a contrast z, element by element, float64 and at least 1e-6."""
        z = contrast.double()
        falls = (-self.k * z).exp() if self.decay == "exponential" else 1 - self.k * z
        gamma = (self.alpha * falls).clamp(min=LOWEST)
        if self.piecewise:
            inside = (self.lower <= gamma) & (gamma <= self.upper)
            gamma = torch.where(inside, gamma, gamma.square())
        return gamma.clamp(min=LOWEST)

    def _fused(self, tuned: Predictions, zero_shot: Predictions) -> Tensor:
        (image, text), (other_image, other_text) = map(plain_features, (tuned, zero_shot))
        if self.unit == "scaled":
            assert tuned.logit_scale is not None and zero_shot.logit_scale is not None
            text = _wide(text) * tuned.logit_scale
            other_text = _wide(other_text) * zero_shot.logit_scale
        if self.centered:
            # the mean over classes of a product is the product with the mean class
            text, other_text = (_wide(x) - _wide(x).mean(0) for x in (text, other_text))
        if image is other_image or torch.equal(image, other_image):
            # prompts move texts alone: one product with what they moved by, against nothing
            text = _wide(text) - _wide(other_text)
            other_image, other_text = (x.new_zeros(len(x), 1) for x in (image, text))
        seen = logit_statistics(image, text, 1.0, (other_image, other_text))
        assert seen.mean_difference is not None
        return seen.mean_difference

    def _difference(self, tuned: Tensor, zero_shot: Tensor) -> Tensor:
        difference = tuned - zero_shot.to(tuned.device)
        if self.centered:
            difference = difference - difference.mean(-1, keepdim=True)
        return difference.abs().mean(-1)

    def _outputs(self, model: Predictions, logits: Tensor) -> Tensor:
        logits = _wide(logits)
        if self.unit == "probability":
            return logits.softmax(-1)
        if self.unit == "cosine":
            assert model.logit_scale is not None
            return logits / model.logit_scale
        return logits


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))

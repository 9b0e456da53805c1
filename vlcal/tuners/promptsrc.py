"""PromptSRC: independent prompts, regularized by the frozen model and averaged over epochs.

Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV
2023.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vlcal.clip import CLIP
from vlcal.tuners.base import Recipe, Setting, cosine_logits
from vlcal.tuners.ivlp import IVLP
from vlcal.tuners.targets import FrozenText
from vlcal.tuners.templates import templates_named
from vlcal.types import ClassSet, Outputs

_PROMPTS = {"n_ctx": 4, "n_ctx_vision": 4, "ctx_init": "a photo of a"}
_NINE = {"prompt_depth": 9, "prompt_depth_vision": 9}
_THREE = {"prompt_depth": 3, "prompt_depth_vision": 3}


class PromptSRC(IVLP):
    """IVLP whose features and beliefs stay near the frozen model's, averaged at the end.

    The loss adds weight_text * mean |w - u| over class features, weight_image * mean |f - f0| over
    image features and weight_logits * KL(zero-shot || tuned) / (B C). u is the mean over templates
    before it is made unit, f0 the frozen model's feature of the same augmented image. After the
    last of T epochs what is learned becomes the mean over epochs with `epoch_weights`.

    Args:
        clip: the frozen model; its image tower must be a vision transformer.
        classes: the classes to learn from.
        n_ctx: context vectors in front of the name; the first tokens of `ctx_init`.
        n_ctx_vision: vectors behind the image's patches.
        ctx_init: a phrase to start from; None draws from N(0, 0.02^2).
        prompt_depth: text blocks with prompts of their own; 9, or all of a shallower tower.
        prompt_depth_vision: image blocks with prompts of their own, likewise.
        weight_text: see above.
        weight_image: see above.
        weight_logits: see above.
        mean: epoch, counted from 1, with the largest weight.
        std: of the weights, in epochs; infinity weighs all epochs alike.
        templates: of u: "imagenet60", "imagenet80", or a list of prompts.
        seed: of everything drawn.
        max_bytes: see `ContextTokens`; changes no result beyond rounding, and is not saved.
    """

    name: ClassVar[str] = "promptsrc"
    recipe: ClassVar[Recipe] = Recipe(epochs=20, lr=0.0025, batch_size=4)
    settings: ClassVar[Mapping[str, Setting]] = {
        "dac2024": Setting(
            {**_PROMPTS, **_NINE, "mean": 30.0, "std": 30.0, "templates": "imagenet80"},
            Recipe(50, 0.0025, 4),
        ),
        "upstream": Setting(
            {**_PROMPTS, **_NINE, "mean": 15.0, "std": 1.0, "templates": "imagenet60"}, recipe
        ),
        "upstream_cross_dataset": Setting(
            {**_PROMPTS, **_THREE, "mean": 6.0, "std": 10.0, "templates": "imagenet60"}, recipe
        ),
    }
    usual_depth: ClassVar[int] = 9

    def __init__(
        self,
        clip: CLIP,
        classes: ClassSet,
        *,
        n_ctx: int = 4,
        n_ctx_vision: int = 4,
        ctx_init: str | None = "a photo of a",
        prompt_depth: int | None = None,
        prompt_depth_vision: int | None = None,
        weight_text: float = 25.0,
        weight_image: float = 10.0,
        weight_logits: float = 1.0,
        mean: float = 15.0,
        std: float = 1.0,
        templates: str | Sequence[str] = "imagenet60",
        seed: int = 0,
        max_bytes: int | None = None,
    ) -> None:
        if not std > 0:
            raise ValueError(f"promptsrc: std must be positive, got {std}")
        super().__init__(
            clip,
            classes,
            n_ctx=n_ctx,
            n_ctx_vision=n_ctx_vision,
            ctx_init=ctx_init,
            prompt_depth=prompt_depth,
            prompt_depth_vision=prompt_depth_vision,
            seed=seed,
            max_bytes=max_bytes,
        )
        self.hyperparameters |= {
            "weight_text": weight_text,
            "weight_image": weight_image,
            "weight_logits": weight_logits,
            "mean": mean,
            "std": std,
            "templates": templates,
        }
        self.weights = weight_text, weight_image, weight_logits
        self.mean, self.std = mean, std
        self.target = FrozenText(clip, templates_named(self.name, templates))
        self._frozen = torch.zeros(0)
        for name, parameter in self.named_parameters():
            average = torch.zeros_like(parameter, requires_grad=False)
            self.register_buffer(_average(name), average, persistent=False)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit image features [B, D]; in training the frozen model's are kept for `losses`."""
        if self.training and images.ndim == 4:
            with torch.no_grad():
                self._frozen = self.clip.encode_image(images)
        return super().image_features(images)

    def frozen_image_features(self, images: Tensor, out: Outputs) -> Tensor:
        """Those that `image_features` has encoded anyway."""
        return self._frozen

    def losses(self, out: Outputs, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and the three distances to the frozen model."""
        text, image, belief = self.weights
        words, frozen = self.target(self.classes.names), self._frozen
        zero_shot = cosine_logits(frozen, words, self.logit_scale)
        return super().losses(out, labels) | {
            "text": text * F.l1_loss(out.text_features, words),
            "image": image * F.l1_loss(out.image_features, frozen),
            "logits": belief * divergence(zero_shot, out.logits),
        }

    def on_epoch_end(self, epoch: int, epochs: int) -> None:
        """Add this epoch to the average; after the last one, become the average."""
        weight = float(epoch_weights(epochs, self.mean, self.std)[epoch])
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                average = self.get_buffer(_average(name))
                average.mul_(float(epoch > 0)).add_(parameter, alpha=weight)
                if epoch == epochs - 1:
                    parameter.copy_(average)

    def training_state(self) -> dict[str, Tensor]:
        """The averages over the epochs so far."""
        names = [_average(name) for name, _ in self.named_parameters()]
        return {name: self.get_buffer(name) for name in names}


def epoch_weights(epochs: int, mean: float, std: float) -> Tensor:
    """Weights [epochs] of the epochs 1..T: a normal density, made to sum to one; float64.

    >>> epoch_weights(20, 15, 1)[14]
    tensor(0.3989, dtype=torch.float64)
    """
    epoch = torch.arange(1, epochs + 1, dtype=torch.float64)
    # a softmax keeps its sum where the density of every epoch is too small for a number
    return (-0.5 * ((epoch - mean) / std) ** 2).softmax(0)


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """KL divergence of beliefs from logits [B, C] to those from `target`, over B * C."""
    log_target, log_probs = target.log_softmax(-1), logits.log_softmax(-1)
    return (log_target.exp() * (log_target - log_probs)).mean()


def _average(name: str) -> str:
    return "average_" + name.replace(".", "_")

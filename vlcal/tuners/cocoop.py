"""CoCoOp: a learned context that each image shifts.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlcal.clip import CLIP, unit
from vlcal.regularizers import EncodeText
from vlcal.tuners.base import Recipe, Setting
from vlcal.tuners.coop import CoOp
from vlcal.tuners.linear import seeded_linear
from vlcal.types import ClassSet, Outputs

PROMPTS = 4096  # class prompts of all images in one pass


class CoCoOp(CoOp):
    """Context vectors plus a shift that a small network computes from the image's unit feature.

    Each image reads the classes under its own context, so logits are no product of two feature
    matrices. The reported text features are those of the context without a shift; in training,
    where they would cost another pass, the mean over the batch's images, made unit.

    Args:
        clip: the frozen model.
        classes: the classes to learn from.
        n_ctx: context vectors; the number of tokens of `ctx_init`, 16 without it.
        ctx_init: a phrase to start from; None draws from N(0, 0.02^2).
        seed: of the network and of a random initial context.
        max_bytes: see `ContextTokens`; changes no result beyond rounding, and is not saved.
    """

    name: ClassVar[str] = "cocoop"
    recipe: ClassVar[Recipe] = Recipe(epochs=10, lr=0.002, batch_size=1)
    settings: ClassVar[Mapping[str, Setting]] = {
        "dac2024": Setting({"n_ctx": 4, "ctx_init": "a photo of a"}, recipe),
        "upstream": Setting({"n_ctx": 4, "ctx_init": "a photo of a"}, recipe),
    }
    linear: ClassVar[bool] = False

    def __init__(
        self,
        clip: CLIP,
        classes: ClassSet,
        *,
        n_ctx: int | None = None,
        ctx_init: str | None = "a photo of a",
        seed: int = 0,
        max_bytes: int | None = None,
    ) -> None:
        super().__init__(
            clip, classes, n_ctx=n_ctx, ctx_init=ctx_init, seed=seed, max_bytes=max_bytes
        )
        self.hyperparameters = {
            name: self.hyperparameters[name] for name in ("n_ctx", "ctx_init", "seed")
        }
        self.meta_net = MetaNet(clip.embed_dim, clip.text.width, seed).to(clip.device)

    def forward_features(self, image_features: Tensor) -> Outputs:
        """Logits and features for unit image features [B, D]."""
        # a backward pass keeps what all images need, which max_bytes bounds only as a whole
        size = len(image_features) if torch.is_grad_enabled() else PROMPTS // len(self.classes)
        logits, total = [], torch.zeros((), device=image_features.device)
        for part in image_features.split(max(1, size)):
            features = self._conditioned(part)
            with torch.autocast(part.device.type, enabled=False):
                cosines = torch.einsum("bd,bcd->bc", part.to(features.dtype), features)
            logits.append(self.logit_scale * cosines)
            total = total + features.sum(0)
        text_features = unit(total) if self.training else self.text_features()
        return Outputs(torch.cat(logits), image_features, text_features)

    def step_encoder(self, out: Outputs) -> EncodeText:
        """Words under the context of the batch's last image, as in the published DOR code.

        With several processes each takes the last image of its own part.
        """

        def encode(words: Sequence[str]) -> Tensor:
            shift = self.meta_net(out.image_features[-1:].to(self.context.ctx.dtype))
            return unit(self.context(self.context.tokenize(words), shift)[0])

        return encode

    def _conditioned(self, image_features: Tensor) -> Tensor:
        """Unit features [B, C, D] of the classes under each image's context."""
        shift = self.meta_net(image_features.to(self.context.ctx.dtype))
        return unit(self.context(self._prompts, shift))


class MetaNet(nn.Module):
    """Linear, ReLU, linear: unit image features [B, D] -> shifts [B, W], through D / 16 numbers.

    Args:
        dim: D.
        width: W, of the text tower.
        seed: of the initial weights, uniform in +-1 / sqrt(inputs) as in torch.
    """

    def __init__(self, dim: int, width: int, seed: int) -> None:
        super().__init__()
        hidden = max(1, dim // 16)
        generator = torch.Generator().manual_seed(seed)
        self.squeeze = seeded_linear(dim, hidden, generator)
        self.expand = seeded_linear(hidden, width, generator)

    def forward(self, image_features: Tensor) -> Tensor:
        """The shift of each image's context."""
        return self.expand(self.squeeze(image_features).relu())

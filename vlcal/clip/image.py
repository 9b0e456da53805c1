"""The image tower with learned prompts among its tokens (MaPLe, PromptSRC, VPT)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlcal.clip.blocks import check_deep, run_blocks


class ImageTower:
    """The image side of an open_clip model, which can read prompts beside the patches.

    Holds no weight: everything is read from the model that it was made of.

    Args:
        model: an open_clip model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    @property
    def width(self) -> int:
        """W, the width of tokens and prompts."""
        self._need_prompts("ImageTower.width")
        return self.source.class_embedding.shape[-1]

    @property
    def layers(self) -> int:
        """The number of transformer blocks."""
        self._need_prompts("ImageTower.layers")
        return len(self.source.transformer.resblocks)

    @property
    def source(self) -> Any:
        """open_clip's image tower."""
        return self.model.visual

    def refuses_prompts(self) -> str | None:
        """Why this tower cannot read prompts; None if it can."""
        parts = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer")
        if not all(hasattr(self.source, part) for part in parts):
            return "its image tower is not open_clip's own vision transformer"
        if getattr(self.source, "attn_pool", None) is not None:
            return "its image tower pools by attention"
        if (pooling := getattr(self.source, "pool_type", "tok")) != "tok":
            return f"its image tower pools by {pooling!r} and not by its class token"
        return None

    def encode(
        self, images: Tensor, prompts: Tensor | None = None, deep: Tensor | None = None
    ) -> Tensor:
        """Image features [B, D], not normalized.

        Prompts stand behind the patches, without a position of their own, before the first norm;
        Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023. Without any this is
        open_clip's own `encode_image`, on every tower.

        Args:
            images: [B, 3, H, W] preprocessed.
            prompts: [n, W] appended to the tokens of every image.
            deep: [layers, m, W] vectors that replace the first m <= n prompts at the input of the
                second block, the third, ...

        Raises:
            NotImplementedError: the tower cannot read prompts; `refuses_prompts` says why.
        """
        if prompts is None:
            if deep is not None:
                raise ValueError("ImageTower.encode: deep replaces prompts, but prompts is None")
            first = next(self.source.parameters())
            return self.model.encode_image(images.to(first.device, first.dtype))
        self._need_prompts("ImageTower.encode")
        if prompts.ndim != 2 or prompts.shape[1] != self.width:
            raise ValueError(
                f"ImageTower.encode: prompts must be [n, {self.width}], got {tuple(prompts.shape)}"
            )
        check_deep("ImageTower.encode", deep, self.layers, self.width, len(prompts))
        x = self._tokens(images)
        count = x.shape[1]
        x = torch.cat([x, prompts.to(x.dtype).expand(len(x), -1, -1)], 1)
        x = run_blocks(self.source.transformer.resblocks, self.source.ln_pre(x), None, deep, count)
        # the final norm works per token, so only the class token needs it
        x = self.source.ln_post(x[:, 0])
        return x if self.source.proj is None else x @ self.source.proj

    def _tokens(self, images: Tensor) -> Tensor:
        """Class token and patches [B, 1 + patches, W] with positions, before the first norm."""
        tower = self.source
        weight = tower.conv1.weight
        x = tower.conv1(images.to(weight.device, weight.dtype)).flatten(2).transpose(1, 2)
        if len(tower.positional_embedding) != 1 + x.shape[1]:
            raise ValueError(
                f"ImageTower.encode: images must give {len(tower.positional_embedding) - 1} "
                f"patches, {tuple(images.shape)} give {x.shape[1]}"
            )
        start = tower.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([start, x], 1) + tower.positional_embedding.to(x.dtype)
        return getattr(tower, "patch_dropout", nn.Identity())(x)

    def _need_prompts(self, who: str) -> None:
        if (why := self.refuses_prompts()) is not None:
            raise NotImplementedError(f"{who}: images cannot be given with prompts, {why}")

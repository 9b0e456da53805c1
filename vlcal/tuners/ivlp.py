"""IVLP: independent vision-language prompts, learned in both towers without a coupling.

The baseline of Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, and the model of
PromptSRC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlcal.clip import CLIP
from vlcal.tuners.base import Recipe, Setting
from vlcal.tuners.deep import (
    PromptedTowers,
    chosen_depth,
    deep_text,
    later_generator,
    leading_context,
)
from vlcal.tuners.prompts import ContextTokens, DeepPrompts
from vlcal.types import ClassSet


class IVLP(PromptedTowers):
    """Prompts of their own for every tower and block, learned by cross-entropy.

    Args:
        clip: the frozen model; its image tower must be a vision transformer.
        classes: the classes to learn from.
        n_ctx: context vectors in front of the name; the first tokens of `ctx_init`.
        n_ctx_vision: vectors behind the image's patches, drawn from N(0, 0.02^2).
        ctx_init: a phrase; words that the context does not replace stay fixed. None draws the
            context from N(0, 0.02^2).
        prompt_depth: text blocks with prompts of their own; 12, or all of a shallower tower.
        prompt_depth_vision: image blocks with prompts of their own, likewise.
        seed: of everything drawn.
        max_bytes: see `ContextTokens`; changes no result beyond rounding, and is not saved.
    """

    name: ClassVar[str] = "ivlp"
    recipe: ClassVar[Recipe] = Recipe(epochs=5, lr=0.0035, batch_size=4)
    settings: ClassVar[Mapping[str, Setting]] = {
        "upstream": Setting(
            {
                "n_ctx": 2,
                "n_ctx_vision": 2,
                "ctx_init": "a photo of a",
                "prompt_depth": 12,
                "prompt_depth_vision": 12,
            },
            recipe,
        )
    }
    usual_depth: ClassVar[int] = 12

    def __init__(
        self,
        clip: CLIP,
        classes: ClassSet,
        *,
        n_ctx: int = 2,
        n_ctx_vision: int = 2,
        ctx_init: str | None = "a photo of a",
        prompt_depth: int | None = None,
        prompt_depth_vision: int | None = None,
        seed: int = 0,
        max_bytes: int | None = None,
    ) -> None:
        ctx, fixed = leading_context(self.name, clip.text, n_ctx, ctx_init, seed)
        depth = chosen_depth(
            f"{self.name}: prompt_depth", prompt_depth, self.usual_depth, clip.text.layers
        )
        depth_vision = chosen_depth(
            f"{self.name}: prompt_depth_vision",
            prompt_depth_vision,
            self.usual_depth,
            clip.image.layers,
        )
        super().__init__(
            clip,
            classes,
            n_ctx=n_ctx,
            n_ctx_vision=n_ctx_vision,
            ctx_init=ctx_init,
            prompt_depth=depth,
            prompt_depth_vision=depth_vision,
            seed=seed,
        )
        generator = later_generator(seed)
        self.context = ContextTokens(
            clip.text,
            ctx,
            deep=deep_text(clip, depth, n_ctx, generator),
            max_bytes=max_bytes,
            who=self.name,
        )
        self.vision = VisualPrompts(n_ctx_vision, depth_vision, clip.image.width, generator)
        self.to(clip.device)
        self.fixed = fixed
        self.set_classes(classes)

    def visual(self) -> tuple[Tensor, Tensor | None]:
        """Vectors [n, W] behind the patches, and those [layers, n, W] of the later blocks."""
        return self.vision()


class VisualPrompts(nn.Module):
    """Learned vectors behind the image's patches, in the first block and in later ones.

    Args:
        n_ctx: vectors per block.
        depth: prompted blocks, the first one included.
        width: of the image tower.
        generator: draws everything from N(0, 0.02^2).
    """

    def __init__(self, n_ctx: int, depth: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        if n_ctx < 1:
            raise ValueError(f"VisualPrompts: n_ctx must be at least 1, got {n_ctx}")
        first = torch.empty(n_ctx, width).normal_(0, 0.02, generator=generator)
        self.first = nn.Parameter(first)
        self.deep = None if depth == 1 else DeepPrompts(depth, n_ctx, width, generator)

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """The first block's vectors [n, W], and those [depth - 1, n, W] of the later ones."""
        return self.first, None if self.deep is None else self.deep()

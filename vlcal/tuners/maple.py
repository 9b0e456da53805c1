"""MaPLe: text prompts in several blocks, and visual prompts that are linear maps of them.

Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023.
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
from vlcal.tuners.linear import seeded_linear
from vlcal.tuners.prompts import ContextTokens
from vlcal.types import ClassSet


class MaPLe(PromptedTowers):
    """Coupled prompts, learned by cross-entropy.

    The image tower's prompts of a block are a linear map of the text tower's; the maps of the later
    blocks begin as copies of one another. Sizes follow the model.

    Args:
        clip: the frozen model; its image tower must be a vision transformer.
        classes: the classes to learn from.
        n_ctx: prompts per block in both towers; the first tokens of `ctx_init`.
        ctx_init: a phrase; words that the context does not replace stay fixed. None draws the
            context from N(0, 0.02^2).
        prompt_depth: blocks with prompts of their own; 9, or all of the shallower tower.
        seed: of everything drawn.
        max_bytes: see `ContextTokens`; changes no result beyond rounding, and is not saved.
    """

    name: ClassVar[str] = "maple"
    recipe: ClassVar[Recipe] = Recipe(epochs=5, lr=0.0035, batch_size=4)
    settings: ClassVar[Mapping[str, Setting]] = {
        "dac2024": Setting({"n_ctx": 2, "ctx_init": None, "prompt_depth": 9}, recipe),
        "upstream": Setting({"n_ctx": 2, "ctx_init": "a photo of a", "prompt_depth": 9}, recipe),
        "upstream_cross_dataset": Setting(
            {"n_ctx": 2, "ctx_init": "a photo of a", "prompt_depth": 3}, Recipe(2, 0.0026, 4)
        ),
    }

    def __init__(
        self,
        clip: CLIP,
        classes: ClassSet,
        *,
        n_ctx: int = 2,
        ctx_init: str | None = "a photo of a",
        prompt_depth: int | None = None,
        seed: int = 0,
        max_bytes: int | None = None,
    ) -> None:
        ctx, fixed = leading_context(self.name, clip.text, n_ctx, ctx_init, seed)
        layers = min(clip.text.layers, clip.image.layers)
        depth = chosen_depth("maple: prompt_depth", prompt_depth, 9, layers)
        super().__init__(
            clip, classes, n_ctx=n_ctx, ctx_init=ctx_init, prompt_depth=depth, seed=seed
        )
        generator = later_generator(seed)
        self.context = ContextTokens(
            clip.text,
            ctx,
            deep=deep_text(clip, depth, n_ctx, generator),
            max_bytes=max_bytes,
            who=self.name,
        )
        sizes = clip.text.width, clip.image.width
        first, later = (seeded_linear(*sizes, generator) for _ in range(2))
        self.couplings = nn.ModuleList([first])
        for _ in range(depth - 1):
            self.couplings.append(seeded_linear(*sizes, generator))
            self.couplings[-1].load_state_dict(later.state_dict())
        self.to(clip.device)
        self.fixed = fixed
        self.set_classes(classes)

    def visual(self) -> tuple[Tensor, Tensor | None]:
        """The text prompts of every block, mapped: [n, W] for the first, [layers, n, W] later."""
        first, *later = self.couplings
        if self.context.deep is None:
            return first(self.context.ctx), None
        deep = zip(later, self.context.deep(), strict=True)
        return first(self.context.ctx), torch.stack([layer(prompts) for layer, prompts in deep])

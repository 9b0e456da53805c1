"""Tuners with prompts in both towers: what MaPLe, PromptSRC and independent prompts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from vlcal.clip import CLIP, TextTower, unit
from vlcal.tuners.base import Tuner
from vlcal.tuners.prompts import ContextTokens, DeepPrompts, initial_context
from vlcal.types import ClassSet


class PromptedTowers(Tuner):
    """Learned vectors in front of the names and among the image's patches, in several blocks.

    A subclass makes `context` before it calls `set_classes`, and says in `visual` what the image
    tower gets.
    """

    learns_images: ClassVar[bool] = True
    context: ContextTokens
    fixed: str = ""

    def visual(self) -> tuple[Tensor, Tensor | None]:
        """Vectors [n, W] behind the patches, and those [layers, n, W] of the later blocks."""
        raise NotImplementedError

    def set_classes(self, classes: ClassSet) -> None:
        """Predict these classes from now on, with the learned prompts."""
        super().set_classes(classes)
        self._prompts = self.context.tokenize(self._behind_context(classes.names))

    def encode_text(self, words: Sequence[str]) -> Tensor:
        """Unit text features [W, D] of any words under the current prompts."""
        return unit(self.context(self.context.tokenize(self._behind_context(words))))

    def class_features(self) -> Tensor:
        """Unit text features [C, D] of the classes under the current prompts."""
        return unit(self.context(self._prompts))

    def image_features(self, images: Tensor) -> Tensor:
        """Unit image features [B, D] of images [B, 3, H, W] under the current prompts."""
        if images.ndim == 2:
            return super().image_features(images)
        return unit(self.clip.image.encode(images, *self.visual()))

    def _behind_context(self, words: Sequence[str]) -> Sequence[str]:
        if isinstance(words, str) or not self.fixed:
            return words
        return [f"{self.fixed} {word}" for word in words]


def leading_context(
    who: str, tower: TextTower, n_ctx: int, ctx_init: str | None, seed: int
) -> tuple[Tensor, str]:
    """Vectors [n_ctx, W] from the first tokens of a phrase, and its other words, which stay fixed.

    Without a phrase the vectors are drawn from N(0, 0.02^2).
    """
    if ctx_init is None:
        return initial_context(tower, n_ctx, None, seed=seed, copies=None), ""
    words = ctx_init.replace("_", " ").split()
    ctx = initial_context(tower, None, ctx_init, seed=seed, copies=None)
    if not 1 <= n_ctx <= len(ctx) or (n_ctx < len(ctx) and len(words) != len(ctx)):
        raise ValueError(
            f"{who}: n_ctx must be in 1..{len(ctx)} (the tokens of {ctx_init!r}), got {n_ctx}; "
            "a phrase that is cut must have one token per word"
        )
    return ctx[:n_ctx], " ".join(words[n_ctx:])


def deep_text(clip: CLIP, depth: int, n_ctx: int, generator: torch.Generator) -> DeepPrompts | None:
    """The text prompts of the blocks after the first; None if there are none."""
    return None if depth == 1 else DeepPrompts(depth, n_ctx, clip.text.width, generator)


def chosen_depth(who: str, asked: int | None, usual: int, layers: int) -> int:
    """The number of prompted blocks: as asked, or the usual one as far as the tower goes."""
    depth = min(usual, layers) if asked is None else asked
    if not 1 <= depth <= layers:
        raise ValueError(f"{who} must be in 1..{layers} (the blocks of the tower), got {depth}")
    return depth


def later_generator(seed: int) -> torch.Generator:
    """A generator for what is drawn after the context, so that it does not repeat its numbers."""
    return torch.Generator().manual_seed(1_000_003 + seed)

"""What the frozen model says about words and images: the target of tuners and regularizers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vlcal.clip import CLIP, unit
from vlcal.regularizers.base import no_images
from vlcal.tuners.base import Tuner
from vlcal.types import ClassSet, Outputs


class FrozenText:
    """Unit text features of words in fixed templates, by the frozen model, without gradients.

    Of several templates the features are averaged before they are made unit, as in PromptSRC. What
    was computed last is kept.

    Args:
        clip: the frozen model.
        templates: prompts with exactly one `{}` each, at least one.
    """

    def __init__(self, clip: CLIP, templates: Sequence[str]) -> None:
        if isinstance(templates, str) or not templates:
            raise ValueError(f"FrozenText: templates must be a list of prompts, got {templates!r}")
        self.clip = clip
        self.templates = [ClassSet((), template) for template in templates]
        self._kept: tuple[Any, Tensor] | None = None

    def __call__(self, words: Sequence[str]) -> Tensor:
        """Unit features [W, D] of the words."""
        key = (tuple(words), self.clip.device, self.clip.dtype)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self._encode(key[0]))
        return self._kept[1]

    @torch.no_grad()
    def _encode(self, words: tuple[str, ...]) -> Tensor:
        text = self.clip.text
        total = torch.zeros((), device=self.clip.device)
        with torch.autocast(self.clip.device.type, enabled=False):
            for template in self.templates:
                prompts = [template.fill(word) for word in words]
                if len(self.templates) == 1:
                    return self.clip.encode_text(prompts)
                tokens = text.tokenize(prompts).to(self.clip.device)
                total = total + text.encode(text.embed(tokens), text.end(tokens))
        return unit(total)


class FrozenImages:
    """The frozen model's unit image features for the images of the running step, no gradients.

    They are made when somebody first asks for them in a step, and cost nothing otherwise.

    Args:
        tuner: whose steps they are.
    """

    def __init__(self, tuner: Tuner) -> None:
        self.tuner = tuner
        self._step: tuple[Tensor, Outputs] | None = None
        self._kept: Tensor | None = None

    @contextmanager
    def step(self, images: Tensor, out: Outputs) -> Iterator[None]:
        """The step with these images [B, 3, H, W] and their outputs runs inside."""
        self._step, self._kept = (images, out), None
        try:
            yield
        finally:
            self._step = self._kept = None

    def __call__(self) -> Tensor:
        """Unit features [B, D]."""
        if self._step is None:
            return no_images()
        if self._kept is None:
            self._kept = self.tuner.frozen_image_features(*self._step)
        return self._kept

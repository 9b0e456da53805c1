"""What a training-time calibration method may change: the logits of a step, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vlcal.clip import CLIP
from vlcal.types import ClassSet, Outputs

EncodeText = Callable[[Sequence[str]], Tensor]


def no_images() -> Tensor:
    """What `Setup.frozen_images` is without a training."""
    raise RuntimeError("frozen_images: there are images only while a training step runs")


class Setup(NamedTuple):
    """What a regularizer may know before the first step.

    Args:
        clip: the frozen model: zero-shot features come from here.
        classes: the classes that are learned.
        encode_text: the tuner's own function from words to unit features [W, D].
        learns_images: whether image features in training differ from those of the frozen model.
        learns_text: whether text features do.
        frozen_images: for `Regularizer.logits` and `penalty`: gives the frozen model's unit image
            features [B, D] for the images of the running step, without gradients. Encoded when
            first asked for in a step, and only if the tuner changes images.
    """

    clip: CLIP
    classes: ClassSet
    encode_text: EncodeText
    learns_images: bool = False
    learns_text: bool = True
    frozen_images: Callable[[], Tensor] = no_images


class Regularizer:
    """Changes nothing; a method overrides some of the hooks.

    It sees features and words, never the tuner. Its parameters are dataclass fields; what `prepare`
    finds ends in `_`. A `generator` that it holds is seeded by `fit` and stored in checkpoints.

    `published` are the arguments that the paper uses with a tuner of this name, "*" for all others;
    whoever makes a regularizer for a named tuner applies them below the user's own.
    """

    name: ClassVar[str] = "none"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    progress: Callable[[int, int], None] | None = None
    """Called with parts done and parts in all while `prepare` works."""

    def check(self, setup: Setup) -> None:
        """Refuse a tuner that the method cannot run on; quick, and called before anything else.

        Raises:
            NotImplementedError: the message says why.
        """

    def prepare(self, setup: Setup) -> None:
        """Get ready for a training; called once, before its first step."""

    def logits(self, out: Outputs) -> Tensor:
        """The logits [B, C] that the loss of this step is computed from."""
        return out.logits

    def penalty(self, out: Outputs, encode_text: EncodeText) -> Tensor:
        """A scalar that is added to the loss under the method's name.

        `encode_text` is the tuner's function for this step: its context may depend on the images.
        """
        return out.logits.new_zeros(())

    def identity(self) -> dict[str, Any]:
        """Name and arguments as JSON values: part of checkpoints, run keys and result rows."""
        own: Any = self
        named = fields(own) if is_dataclass(own) else ()
        return {"name": self.name} | {f.name: getattr(self, f.name) for f in named if f.repr}

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step depends on, beside `prepare` and the generator."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""


def check_learned(who: str, setup: Setup) -> None:
    """Refuse a tuner that learns no text.

    Raises:
        NotImplementedError: with a sentence.
    """
    if not setup.learns_text:
        raise NotImplementedError(f"{who}: the text features are not learned, nothing to hold back")


@torch.no_grad()
def zero_shot_features(clip: CLIP, classes: ClassSet) -> Tensor:
    """Unit text features [C, D] of the untuned model, never in half precision."""
    with torch.autocast(clip.device.type, enabled=False):
        return clip.encode_text(classes.prompts())

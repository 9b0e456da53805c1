"""Zero-shot CLIP: the template filled with every class name, nothing learned.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from vlcal.clip import CLIP
from vlcal.tuners.base import Tuner
from vlcal.types import ClassSet


class ZeroShot(Tuner):
    """CLIP as it is, with the template of its classes.

    Args:
        clip: the model.
        classes: the classes to tell apart, with their template.
    """

    name: ClassVar[str] = "zero_shot"
    learns_text: ClassVar[bool] = False

    def __init__(self, clip: CLIP, classes: ClassSet) -> None:
        super().__init__(clip, classes)
        self.set_classes(classes)

    def encode_text(self, words: Sequence[str]) -> Tensor:
        """Unit text features [W, D] of words in the template."""
        if isinstance(words, str):
            raise ValueError("zero_shot: words must be a list of strings, got one string")
        return self.clip.encode_text([self.classes.fill(word) for word in words])

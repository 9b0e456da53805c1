"""What a training-time calibration method may change: the logits of a step, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from vlcal.types import Outputs

EncodeText = Callable[[Sequence[str]], Tensor]


class Regularizer:
    """Changes nothing; a method overrides one of the two hooks.

    It sees features and words, never the tuner: `encode_text` is the tuner's own function from
    words to unit features [W, D] under its current prompts.
    """

    name: ClassVar[str] = "none"

    def logits(self, out: Outputs) -> Tensor:
        """The logits [B, C] that the loss of this step is computed from."""
        return out.logits

    def penalty(self, out: Outputs, encode_text: EncodeText) -> Tensor:
        """A scalar that is added to the loss under the method's name."""
        return out.logits.new_zeros(())

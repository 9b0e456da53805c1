"""The consistency term of KgCoOp: class features stay near their zero-shot places.

Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vlcal.regularizers.base import (
    EncodeText,
    Regularizer,
    Setup,
    check_learned,
    zero_shot_features,
)
from vlcal.types import ClassSet, Outputs

EPS = 1e-7  # of the cosine, as in the published code


@dataclass(eq=False)
class Knowledge(Regularizer):
    """weight * (1 - mean_c cos(w_c, u_c)) over tuned and zero-shot features of the classes.

    On unit features this is weight / 2 times their mean squared distance.

    Args:
        weight: of the term.
        template: of the zero-shot features; that of the classes by default.
    """

    name: ClassVar[str] = "knowledge"

    weight: float = 8.0
    template: str | None = None

    zero_shot_: Tensor = field(init=False, repr=False)

    def check(self, setup: Setup) -> None:
        """Refuse a tuner whose text features never change."""
        check_learned(self.name, setup)

    def prepare(self, setup: Setup) -> None:
        """Encode the classes with the frozen model."""
        self.check(setup)
        names, template = setup.classes.names, self.template or setup.classes.template
        self.zero_shot_ = zero_shot_features(setup.clip, ClassSet(names, template))

    def penalty(self, out: Outputs, encode_text: EncodeText) -> Tensor:
        """The weighted term of this step."""
        return self.weight * inconsistency(out.text_features, self.zero_shot_)


def inconsistency(tuned: Tensor, frozen: Tensor) -> Tensor:
    """1 - the mean cosine of the rows of two matrices [W, D], never in half precision."""
    with torch.autocast(tuned.device.type, enabled=False):
        return 1 - F.cosine_similarity(tuned, frozen.to(tuned), dim=-1, eps=EPS).mean()

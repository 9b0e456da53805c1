"""A factor on float16 losses that keeps small gradients away from zero, found while training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

START = 2.0**16
GROW_AFTER = 2000
SMALLEST = 2.0**-16


class LossScale:
    """What a loss is multiplied by before its backward pass, and its gradients divided by after.

    It halves when a gradient is not finite (that step is left out), and doubles after `GROW_AFTER`
    steps without; the rule and the numbers are those of `torch.amp.GradScaler`. Dividing is done by
    the loop and not by the optimizer, because gradients are averaged over processes, and by some
    methods combined, before a step.

    Micikevicius et al., "Mixed Precision Training", ICLR 2018.
    """

    def __init__(self) -> None:
        self.value = START
        self.good = 0
        self.skipped = 0

    def accepts(self, gradients: Iterable[Tensor]) -> bool:
        """Whether all gradients are finite; the factor follows."""
        finite = bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all())
        self.good = self.good + 1 if finite else 0
        self.skipped += not finite
        if not finite:
            self.value /= 2
        elif self.good == GROW_AFTER:
            self.value, self.good = 2 * self.value, 0
        return finite

    @property
    def exhausted(self) -> bool:
        """Whether halving has not helped: then it is not float16 that cannot hold the gradients."""
        return self.value < SMALLEST

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step depends on."""
        state = [self.value, float(self.good), float(self.skipped)]
        return {"state": torch.tensor(state, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        value, good, skipped = state["state"].tolist()
        self.value, self.good, self.skipped = value, int(good), int(skipped)

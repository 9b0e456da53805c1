"""Half precision in training: which there are, where they run, and the factor of float16."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", *HALF)
START = 2.0**16
GROW_AFTER = 2000
SMALLEST = 2.0**-16


def half_type(who: str, precision: str, device: torch.device) -> torch.dtype | None:
    """The type that autocast uses for a precision; None for fp32.

    Raises:
        NotImplementedError: torch would leave autocast off on this device.
    """
    dtype = HALF.get(precision)
    if dtype is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autocast(device.type, dtype):
            runs = torch.is_autocast_enabled(device.type)
    if not runs:
        raise NotImplementedError(
            f"{who}: precision {precision} is not possible on {device.type} with torch "
            f"{torch.__version__}; use fp32"
        )
    return dtype


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

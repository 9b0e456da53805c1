"""Sample-adaptive logit scaling: give every row of logits the range it had before tuning.

Murugesan et al., "Robust Calibration of Large Vision-Language Adapters", ECCV 2024.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vlcal.calibrators.base import RowScaling, need, plain_features
from vlcal.ops import logit_statistics
from vlcal.types import Predictions, VlcalWarning

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class SampleAdaptive(RowScaling):
    """Multiply each row of logits by the range of its zero-shot row over its own range.

    The published form maps a row t to (t - min t) / (max t - min t) * (max z - min z) + min z, with
    the zero-shot row z. Softmax does not see the shift, so only the factor is applied. There is
    nothing to fit and nothing to choose; any factor a row had before is undone. A row whose logits
    are all equal in one of the models has no such factor: it keeps its logits, and a warning says
    how many did.

    On models that tuning did not make surer the rows of new classes may get worse: measure both
    halves.
    """

    name: ClassVar[str] = "sals"
    keeps_argmax: ClassVar[bool] = True
    handles_new_classes: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("zero_shot",)

    def fit(self, val: Predictions) -> Self:
        """Learn nothing; check that validation predictions have their zero-shot twin."""
        need("sals", val, "zero_shot")
        return self

    def scale(self, test: Predictions) -> tuple[Tensor | None, Tensor | None]:
        """The factors [N] of rows, and none by predicted class.

        Raises:
            ValueError: there are no zero-shot predictions.
        """
        need("sals", test, "zero_shot")
        assert test.zero_shot is not None
        tuned = ranges(test)
        factor = ranges(test.zero_shot).to(tuned) / tuned
        # 0 / x, x / 0, 0 / 0, and ranges too far apart for a number
        without = ~(torch.isfinite(factor) & (factor > 0))
        if bool(without.any()):
            warnings.warn(
                f"sals: {int(without.sum())} of {len(factor)} rows have equal logits, tuned or "
                "zero-shot, and so no range to compare; they keep their logits",
                VlcalWarning,
                stacklevel=3,
            )
        return torch.where(without, 1.0, factor), None


def ranges(predictions: Predictions) -> Tensor:
    """Largest minus smallest logit of every row [N]; without N x C where none is stored."""
    if predictions.logits is None:
        assert predictions.logit_scale is not None
        seen = logit_statistics(*plain_features(predictions), predictions.logit_scale)
        return seen.max - seen.min
    low, high = predictions.logits.aminmax(dim=-1)
    wide = torch.promote_types(low.dtype, torch.float32)
    return high.to(wide) - low.to(wide)

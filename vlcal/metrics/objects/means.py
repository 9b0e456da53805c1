"""Accuracy, mean confidence, NLL and Brier score, as objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlcal.metrics.objects.declared import DeclaredMetric, Input, NotFinite
from vlcal.ops.reference import CONFIDENCE_UNIT


class _Mean(DeclaredMetric):
    """The mean of one number per sample; the four of them share one state and one pass.

    A state holds 2^37 nats of log-likelihood, 8.5e9 samples.
    """

    sums: Tensor
    row = 0  # of the sums
    unit = 1.0

    def __init__(
        self,
        input: Input,
        *,
        nan: NotFinite = "error",
        validate: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(input, "means", nan=nan, validate=validate, **options)
        self._add_sums("sums", 5)

    def _count(self, values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        seen = self._seen(values, labels)
        assert seen.log_likelihood is not None and seen.brier is not None
        if bool((seen.log_likelihood < -_MOST_NATS).any()):
            row = int(seen.log_likelihood.argmin())
            self._refuse(
                f"-log p(label) must be at most {_MOST_NATS} nats, got "
                f"{-float(seen.log_likelihood[row]):g} in counted row {row}"
            )
        columns = (
            torch.ones_like(labels),
            seen.correct.long(),
            _units(seen.confidence, CONFIDENCE_UNIT),
            _units(-seen.log_likelihood, NATS_UNIT),
            _units(seen.brier, CONFIDENCE_UNIT),
        )
        return {"sums": torch.stack([column.sum() for column in columns])}

    def _n(self, states: Mapping[str, Tensor]) -> int:
        return int(states["sums"][0])

    def _measure(self, states: Mapping[str, Tensor]) -> float:
        return int(states["sums"][self.row]) * self.unit / self._n(states)


NATS_UNIT = 2.0**-26
_MOST_NATS = 1 << 20


class Accuracy(_Mean):
    """Share of correct predictions, in 0..1, exactly; of equal logits the first is predicted.

    Args:
        input: what `preds` holds: "logits" or "probs".
        nan: samples with NaN or an infinity: "error", "drop" or "propagate".
        validate: False trusts the sums of probabilities and the range of logits.
        options: of `torchmetrics.Metric`.
    """

    higher_is_better = True
    row = 1


class MeanConfidence(_Mean):
    """Mean probability of the predicted class; each is rounded to 2^-30. Options as `Accuracy`."""

    higher_is_better = None
    row, unit = 2, CONFIDENCE_UNIT


class NegativeLogLikelihood(_Mean):
    """Mean of -log p(label) in nats; each is rounded to 2^-26 nats. Options as `Accuracy`.

    A probability of 0 counts as 1.2e-38, as in `vlcal.evaluate`.
    """

    row, unit = 3, NATS_UNIT


class BrierScore(_Mean):
    """Mean of the sum over classes of (p - one-hot)^2, in 0..2; each is rounded to 2^-30.

    Options as `Accuracy`.
    """

    row, unit = 4, CONFIDENCE_UNIT


def _units(values: Tensor, unit: float) -> Tensor:
    return (values.double() / unit).round().long()

"""Metric objects over predictions: what `preds` holds is declared, what cannot count is refused."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlcal._arrays import as_tensor
from vlcal.metrics.arrays import check_probs, label_vector, matrix
from vlcal.metrics.conventions import Convention
from vlcal.metrics.objects.additive import AdditiveMetric
from vlcal.metrics.observed import outcomes, outcomes_of_probs
from vlcal.ops import BinStatistics, ClasswiseStatistics
from vlcal.types import NoSamplesError, Outcomes, Predictions, check_finite

Input = Literal["logits", "probs"]
NotFinite = Literal["error", "drop", "propagate"]


@dataclass(frozen=True, eq=False)
class Result:
    """What a metric object found.

    Args:
        value: the number `compute` gives.
        n: samples counted.
        n_dropped: samples left out, or that made the value NaN, because they were not finite.
        convention: the rules behind the number; None where conventions do not differ.
        bins: the statistics behind the number; None for scores without bins.
    """

    value: float
    n: int
    n_dropped: int
    convention: Convention | None = None
    bins: BinStatistics | ClasswiseStatistics | None = None


class DeclaredMetric(AdditiveMetric):
    """An additive metric of logits or probabilities and labels.

    Args:
        input: what `preds` holds: "logits" (already multiplied by the model's logit scale) or
            "probs" (rows sum to one, taken as they are).
        rule: what the state depends on beside `input` and `nan`.
        nan: samples with NaN or an infinity: "error", "drop" (counted in `n_dropped`) or
            "propagate" (the value is NaN).
        validate: False trusts the sums of probabilities and the range of logits.
        options: of `torchmetrics.Metric`.
    """

    dropped: Tensor
    wide: Tensor

    def __init__(
        self, input: Input, rule: object, *, nan: NotFinite, validate: bool, **options: Any
    ) -> None:
        super().__init__((input, nan, rule), **options)
        if input not in ("logits", "probs"):
            self._refuse(f"input must be 'logits' or 'probs', got {input!r}")
        if nan not in ("error", "drop", "propagate"):
            self._refuse(f"nan must be 'error', 'drop' or 'propagate', got {nan!r}")
        self.input, self.nan, self.validate = input, nan, validate
        self._add_sums("dropped")
        # whether a logit was outside -1..1
        self._add_maximum("wide", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def _count(self, values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The sums of finite rows of `preds` [N, C] with their labels [N], N >= 1."""

    @abstractmethod
    def _measure(self, states: Mapping[str, Tensor]) -> float:
        """The number of states with at least one sample that counts."""

    def update(self, preds: Any, target: Any, *, mask: Any = None) -> None:
        """Add a batch.

        Args:
            preds: [N, C] floating point, what `input` says.
            target: [N] integers in 0..C-1.
            mask: [N] bool, False for samples that do not count and are not looked at: those a
                distributed sampler repeats to fill the last batch, or labels to ignore.

        Raises:
            ValueError: a counted sample breaks the contract; nothing is added then.
        """
        self._add(self._batch(preds, target, mask=mask))

    def result(self) -> Result:
        """The value with what is behind it, over all processes.

        Raises:
            NoSamplesError: nothing was counted.
            ValueError: no logit of any batch lies outside -1..1, as it is with cosines; `compute`
                raises it, too.
            RuntimeError: processes hold metrics of different rules.
        """
        with self._synced() as states:
            self._check(states)
            return self._result(states)

    @contextmanager
    def _synced(self) -> Iterator[dict[str, Tensor]]:
        """The states over all processes, wherever they are now."""
        before = self._is_synced
        with (
            self.sync_context(
                dist_sync_fn=self.dist_sync_fn,
                should_sync=self._to_sync and not before,
                should_unsync=not before,
            ),
            self._own_states_after_an_error(not before),
        ):
            yield self.metric_state

    def _result(self, states: Mapping[str, Tensor]) -> Result:
        return Result(self._value(states), self._n(states), int(states["dropped"]))

    def _batch(self, preds: Any, target: Any, *, mask: Any = None) -> dict[str, Tensor]:
        values, labels, dropped = self._rows(preds, target, mask)
        states = self._empty() | {"dropped": dropped}
        if len(values):
            states["wide"] = (torch.stack(values.aminmax()).abs() > 1).any().long()
            states |= self._count(values, labels)
        return states

    def _rows(self, preds: Any, target: Any, mask: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Rows that count and are finite, their labels, and how many were not finite."""
        who = type(self).__name__
        values = matrix(f"{who}: preds", preds)
        labels = as_tensor(f"{who}: target", target).to(values.device)
        if labels.shape != values.shape[:1]:
            label_vector(who, labels, values)
        if mask is not None:
            keep = as_tensor(f"{who}: mask", mask).to(values.device)
            if keep.dtype != torch.bool or keep.shape != labels.shape:
                self._refuse(
                    f"mask must be bool [N] = [{len(labels)}], got {keep.dtype} {tuple(keep.shape)}"
                )
            values, labels = values[keep], labels[keep]
        if self.nan == "error":
            check_finite(f"{who}: preds", values)
        finite = torch.isfinite(values).all(-1) if self.nan != "error" else None
        dropped = torch.zeros((), dtype=torch.int64, device=values.device)
        if finite is not None:
            dropped = (~finite).sum()
            values, labels = values[finite], labels[finite]
        labels = label_vector(who, labels, values)
        if self.input == "probs" and self.validate:
            check_probs(who, values)
        return values, labels, dropped

    def _seen(self, values: Tensor, labels: Tensor) -> Outcomes:
        """What `vlcal.evaluate` sees of the same rows."""
        if self.input == "probs":
            return outcomes_of_probs(values, labels)
        return outcomes(Predictions(logits=values, labels=labels))

    def _check_samples(self, states: Mapping[str, Tensor]) -> None:
        dropped = int(states["dropped"])
        if dropped and self.nan == "propagate":
            return
        if dropped and not self._n(states):
            raise NoSamplesError(f"{type(self).__name__}: none of the {dropped} samples is finite")
        super()._check_samples(states)
        if self.input == "logits" and self.validate and not states["wide"]:
            self._refuse(
                "all logits lie in -1..1, like cosine similarities or probabilities do; multiply "
                "cosines by the model's logit scale (about 100 for CLIP), declare probabilities as "
                "input='probs', or say validate=False if these are logits"
            )

    def _value(self, states: Mapping[str, Tensor]) -> float:
        if self.nan == "propagate" and int(states["dropped"]):
            return math.nan
        return self._measure(states)

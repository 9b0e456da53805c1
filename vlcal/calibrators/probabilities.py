"""What calibrators of probabilities share: blocks of rows, rows of zeros, logits that give them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from vlcal.calibrators.base import content_hash, need, warn_if_seen
from vlcal.types import BLOCK_BYTES, NoSamplesError, Predictions, VlcalWarning

FLOOR = torch.finfo(torch.float32).tiny  # 1.2e-38: what a probability of 0 becomes in logits
ProbabilityMapping = Callable[[Tensor, slice], Tensor]


class ProbabilityMap:
    """Calibrators that map probabilities to probabilities, block by block; they define `mapping`.

    A row that the method leaves without any probability keeps the uncalibrated one, with a warning
    that counts such rows. The logits of `transform` are float32 (float64 for float64 logits).
    """

    name: ClassVar[str]
    fitted_on_: tuple[str, ...] | None = None

    @property
    def keeps_argmax(self) -> bool:
        """Whether no predicted class changes."""
        return False

    def mapping(self, test: Predictions) -> ProbabilityMapping:
        """The map of probabilities [R, C] and their rows to calibrated ones [R, C].

        Raises:
            NotFitted: there is nothing learned.
            NewClasses: the predictions have classes the calibrator cannot handle.
        """
        raise NotImplementedError

    def predict_proba(self, test: Predictions) -> Tensor:
        """Calibrated probabilities [N, C], exactly what the method gives."""
        return _gathered(test, ((rows, made) for rows, _, made in self._blocks(test)))

    def transform(self, test: Predictions) -> Predictions:
        """The same predictions with the logarithms of calibrated probabilities as stored logits.

        A probability below 1.2e-38 is raised to it.
        """
        return test.with_logits(
            _gathered(
                test,
                ((rows, self._logits(block, made)) for rows, block, made in self._blocks(test)),
            )
        )

    def _logits(self, block: Tensor, made: Tensor) -> Tensor:
        logits = made.clamp(min=FLOOR).log_().to(_wide(block.dtype))
        if self.keeps_argmax:
            # rounding to the dtype may let an earlier class draw level
            before = block.argmax(-1)
            moved = (logits.argmax(-1) != before).nonzero()[:, 0]
            above = torch.full((), torch.inf, dtype=logits.dtype, device=logits.device)
            logits[moved, before[moved]] = torch.nextafter(logits[moved].amax(-1), above)
        return logits

    def _blocks(self, test: Predictions) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, their logits and their calibrated probabilities."""
        mapping = self.mapping(test)
        warn_if_seen(self.name, self.fitted_on_, test)
        kept = 0
        for rows, block, probs in probability_blocks(test):
            made = mapping(probs, rows)
            empty = (made.amax(-1) <= 0).nonzero()[:, 0]
            if len(empty):
                made[empty] = probs[empty].to(made.dtype)
                kept += len(empty)
            yield rows, block, made
        if kept:
            warnings.warn(
                f"{self.name}: {kept} of {len(test)} rows had probability 0 in every class after "
                "calibration and keep the uncalibrated ones; more validation samples per class or "
                "mode='top_label' avoid that",
                VlcalWarning,
                stacklevel=3,
            )


def _gathered(test: Predictions, blocks: Iterator[tuple[slice, Tensor]]) -> Tensor:
    """Blocks of rows as one tensor [N, C]; the blocks and the whole do not exist side by side."""
    whole = None
    for rows, block in blocks:
        if whole is None:
            whole = block.new_empty(len(test), test.n_classes)
        whole[rows] = block
    return torch.zeros(0, test.n_classes) if whole is None else whole


def probability_blocks(
    predictions: Predictions, max_bytes: int = BLOCK_BYTES // 16
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, their logits and their softmax, float32 (float64 for float64 logits), few at a time."""
    for rows, block in predictions.blocks(max_bytes):
        yield rows, block, block.to(_wide(block.dtype)).softmax(-1)


def check_labeled(who: str, val: Predictions) -> str:
    """The content hash of labeled predictions; an error without labels or without samples."""
    need(who, val, "labels")
    if len(val) == 0:
        raise NoSamplesError(f"{who}: fit needs at least one sample, got none")
    return content_hash(val)


def normalized(values: Tensor) -> Tensor:
    """Rows divided by their sums; a row of zeros stays."""
    total = values.sum(-1, keepdim=True)
    return values / total.where(total > 0, 1.0)


def with_top(probs: Tensor, predicted: Tensor, confidence: Tensor) -> Tensor:
    """Rows with this probability for the predicted class, the others scaled to sum to the rest.

    Others that are all 0 share the rest evenly.

    Args:
        probs: [R, C].
        predicted: [R] classes.
        confidence: [R] their new probabilities.
    """
    if probs.shape[1] == 1:
        return probs
    column = predicted[:, None]
    others = probs.scatter(1, column, 0.0)
    total = others.sum(-1, keepdim=True)
    rest = 1 - confidence[:, None]
    even = rest / (probs.shape[1] - 1)
    scaled = torch.where(total > 0, others / total.where(total > 0, 1.0) * rest, even)
    return scaled.scatter(1, column, confidence[:, None])


def check_choice(who: str, option: str, value: object, known: tuple[object, ...]) -> None:
    """Refuse a value that is not one of those known."""
    if value not in known:
        names = ", ".join(str(each) for each in known)
        raise ValueError(f"{who}: {option} must be one of {names}, got {value!r}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)

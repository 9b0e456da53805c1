"""Class-wise ECE: is each class as frequent as its probability says, with O(C x bins) state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlcal.metrics.arrays import check_probs, label_vector, matrix
from vlcal.metrics.binned import edges_of
from vlcal.metrics.conventions import Convention
from vlcal.metrics.conventions import convention as convention_named
from vlcal.ops import ClasswiseStatistics, classwise_statistics
from vlcal.ops.reference import CONFIDENCE_UNIT
from vlcal.types import NoSamplesError, Predictions

THRESHOLD = 1e-3
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, eq=False)
class Classwise:
    """The probabilities of every class in the bins of a convention, added up with `+`.

    Static calibration error (Nixon et al., CVPR Workshops 2019; Kull et al., NeurIPS 2019). The
    state is O(C x bins) integers, so batches and ranks combine exactly in any order.

    Args:
        every: all samples of each class, 0 in the first bin and 1 in the last.
        low: three cells per class: a probability of 0, others of at most 0.001, and the rest.
        largest_label: the largest label among the samples.
        convention: the rules.
    """

    every: ClasswiseStatistics
    low: ClasswiseStatistics
    largest_label: int
    convention: Convention

    def __add__(self, other: Classwise) -> Classwise:
        if not isinstance(other, Classwise):
            return NotImplemented
        if self.convention != other.convention:
            raise ValueError(
                "Classwise: only bins of the same convention can be added, "
                f"got {self.convention.name} and {other.convention.name}"
            )
        largest = max(self.largest_label, other.largest_label)
        every, low = self.every + other.every, self.low + other.low
        return Classwise(every, low, largest, self.convention)

    def errors(self) -> Tensor:
        """ECE of each class, [C] float64: the sum over bins of (n_b / N) |gap_b|."""
        zeros = 1 if self.convention.at_zero == "no bin" else 0
        return self._gaps(zeros) / self.every.table[0].sum(-1)

    def errors_thresholded(self) -> Tensor:
        """The same over the samples with a probability above 0.001, N counted for each class.

        A class without such samples has 0.
        """
        return self._gaps(2) / self.low.table[0, :, 2].clamp(min=1)

    def ece(self) -> float:
        """The mean of `errors` over the classes that the convention averages over."""
        return self._mean(self.errors())

    def ece_thresholded(self) -> float:
        """The mean of `errors_thresholded` over the same classes."""
        return self._mean(self.errors_thresholded())

    def _gaps(self, cells: int) -> Tensor:
        """Sums over bins of n_b |gap_b| without so many of the low cells, [C] float64."""
        table = self.every.table.clone()
        table[:, :, 0] -= self.low.table[:, :, :cells].sum(-1)
        return (table[2].double() * CONFIDENCE_UNIT - table[1]).abs().sum(-1)

    def _mean(self, errors: Tensor) -> float:
        if self.convention.classwise == "up to the largest label":
            errors = errors[: self.largest_label + 1]
        return float(errors.mean())


def classwise(predictions: Predictions, convention: Convention) -> Classwise:
    """The class-wise bins of softmax(logits), made in blocks of rows.

    Args:
        predictions: with labels; logits need not be stored.
        convention: the rules.

    Raises:
        ValueError: there are no labels.
        NoSamplesError: N is 0.

    Memory is some blocks of 8 MiB beside the O(C x bins) state.
    """
    labels = predictions.labels
    if labels is None:
        raise ValueError("classwise: needs predictions with labels [N], got none")
    blocks = predictions.blocks(_BLOCK_BYTES)
    return _added(((_probs(block), labels[rows]) for rows, block in blocks), convention)


def classwise_of_probs(probs: Tensor, labels: Tensor, convention: Convention) -> Classwise:
    """The same for probabilities [N, C] that are taken as they are."""
    size = max(1, _BLOCK_BYTES // (4 * probs.shape[1]))
    blocks = zip(probs.split(size), labels.split(size), strict=True)
    return _added(blocks if len(probs) else (), convention)


def classwise_ece(probs: Any, labels: Any, convention: str | Convention = "standard") -> float:
    """Class-wise ECE: the mean over classes of the ECE of "this is the class".

    Every sample counts in every class: its probability of the class against whether it is one.

    Args:
        probs: [N, C] in 0..1, rows sum to 1.
        labels: [N] integers in 0..C-1.
        convention: whose bins, and which classes are averaged over.

    Raises:
        ValueError: shapes, dtypes or values break the contract; the message names the row.
        NoSamplesError: N is 0.
    """
    return _checked("classwise_ece", probs, labels, convention).ece()


def classwise_ece_thresholded(
    probs: Any, labels: Any, convention: str | Convention = "standard"
) -> float:
    """Class-wise ECE over the probabilities above 0.001: of many classes, those in question.

    Each class is weighted by the samples kept for it; otherwise as `classwise_ece`.

    Murugesan et al., "Robust Calibration of Large Vision-Language Adapters", ECCV 2024.
    """
    return _checked("classwise_ece_thresholded", probs, labels, convention).ece_thresholded()


def _checked(who: str, probs: Any, labels: Any, convention: str | Convention) -> Classwise:
    values = matrix(f"{who}: probs", probs)
    chosen = label_vector(who, labels, values)
    check_probs(who, values)
    return classwise_of_probs(values, chosen, convention_named(convention))


def _added(blocks: Iterable[tuple[Tensor, Tensor]], convention: Convention) -> Classwise:
    parts = (_block(probs, labels, convention) for probs, labels in blocks)
    total = next(parts, None)
    if total is None:
        raise NoSamplesError("classwise: needs at least one sample, got none")
    return sum(parts, start=total)


def _block(probs: Tensor, labels: Tensor, convention: Convention) -> Classwise:
    if convention.precision == "float32":
        probs = probs.float()
    threshold = float(torch.tensor(THRESHOLD, dtype=probs.dtype))  # compared in their precision
    low = torch.tensor([-1, 0, threshold, 1], dtype=torch.float64)
    edges = edges_of(convention)
    if convention.n_bins * threshold >= 1:
        raise ValueError(
            f"classwise: probabilities of at most {THRESHOLD} must share the first bin, "
            f"got {convention.n_bins} bins"
        )
    every = classwise_statistics(probs, labels, closed=convention.closed, edges=edges)
    return Classwise(
        every,
        classwise_statistics(probs, labels, edges=low),
        int(labels.max()),
        convention,
    )


def _probs(logits: Tensor) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    # rounding may pass 1
    return logits.to(wide).softmax(-1).clamp_(max=1)

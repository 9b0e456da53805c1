"""The bins of a convention, filled: what every metric over bins is arithmetic on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vlcal.metrics.conventions import Convention
from vlcal.ops import BinStatistics, bin_statistics, group_statistics
from vlcal.ops.binning import equal_edges
from vlcal.types import Outcomes


class Cell(NamedTuple):
    """One bin that holds samples: `weight` of them in N, `count` of them in the means.

    `correct` of the `count` are right, and `confidence` is the sum of theirs.
    """

    weight: int
    count: int
    correct: int
    confidence: float

    @property
    def gap(self) -> float:
        """Mean confidence minus accuracy."""
        return (self.confidence - self.correct) / self.count

    @property
    def share(self) -> float:
        """Weight times gap."""
        return (self.confidence - self.correct) * (self.weight / self.count)


@dataclass(frozen=True, eq=False)
class Binned:
    """The bins of a convention, and what it treats apart; added up with `+`.

    The state is O(bins) integers, so batches and ranks combine exactly in any order.

    Args:
        every: all samples in the bins of equal width, 0 in the first and 1 in the last; what a
            reliability diagram draws.
        zeros: count and correct ones of the confidences of exactly 0, where the convention puts
            them in no bin.
        ones: the same of exactly 1, where it treats them apart.
        convention: the rules.
    """

    every: BinStatistics
    zeros: tuple[int, int]
    ones: tuple[int, int]
    convention: Convention

    def __add__(self, other: Binned) -> Binned:
        if not isinstance(other, Binned):
            return NotImplemented
        if self.convention != other.convention:
            raise ValueError(
                "Binned: only bins of the same convention can be added, "
                f"got {self.convention.name} and {other.convention.name}"
            )
        zeros, ones = (
            (first[0] + second[0], first[1] + second[1])
            for first, second in ((self.zeros, other.zeros), (self.ones, other.ones))
        )
        return Binned(self.every + other.every, zeros, ones, self.convention)

    @property
    def n(self) -> int:
        """Samples in all, also those that are in no bin."""
        return self.every.n

    def cells(self) -> list[Cell]:
        """The bins that hold samples, in ascending order."""
        return [
            Cell(count, count, correct, total) for count, correct, total in self._columns() if count
        ]

    def ece_cells(self) -> list[Cell]:
        """The same for ECE, which may leave a confidence of 1 out of the means of its bin."""
        if self.convention.ece_at_one == "last bin":
            return self.cells()
        columns = self._columns()
        weights = [column[0] for column in columns]
        columns[-1] = _without(columns[-1], self.ones, 1.0)
        return [
            Cell(weight, *column)
            for weight, column in zip(weights, columns, strict=True)
            if column[0]
        ]

    def _columns(self) -> list[tuple[int, int, float]]:
        """Count, correct ones and sum of confidences of each bin."""
        table = self.every
        columns = list(
            zip(
                table.count.tolist(), table.correct.tolist(), table.confidence.tolist(), strict=True
            )
        )
        if self.convention.at_zero == "no bin":
            columns[0] = _without(columns[0], self.zeros, 0.0)
        if self.convention.at_one == "extra bin":
            columns[-1] = _without(columns[-1], self.ones, 1.0)
            columns.append((*self.ones, float(self.ones[0])))
        return columns


def _without(
    column: tuple[int, int, float], apart: tuple[int, int], confidence: float
) -> tuple[int, int, float]:
    count, correct = apart
    return column[0] - count, column[1] - correct, column[2] - count * confidence


def binned(outcomes: Outcomes, convention: Convention) -> Binned:
    """The bins of the convention over all rows at once, empty without rows."""
    confidence, correct = prepared(outcomes.confidence, convention), outcomes.correct
    zeros = ones = (0, 0)
    if convention.at_zero == "no bin":
        zeros = _exactly(0, confidence, correct)
    if convention.at_one == "extra bin" or convention.ece_at_one == "weight only":
        ones = _exactly(1, confidence, correct)
    return Binned(_every(confidence, correct, convention), zeros, ones, convention)


def prepared(confidence: Tensor, convention: Convention) -> Tensor:
    """Confidences in the precision of the convention, clipped where it clips them."""
    if convention.precision is not None:
        confidence = confidence.to(getattr(torch, convention.precision))
    if convention.clip:
        eps = torch.finfo(confidence.dtype).eps
        confidence = confidence.clamp(eps, 1 - eps)
    return confidence


def edges_of(convention: Convention) -> Tensor:
    """The edges [bins + 1] float64 of the bins of equal width; of "ceil", to be drawn."""
    if convention.edges in ("numpy", "ceil"):
        return equal_edges("bins", convention.n_bins)
    dtype = torch.float32 if convention.edges == "torch float32" else torch.float64
    return torch.linspace(0, 1, convention.n_bins + 1, dtype=dtype).double()


def _exactly(value: int, confidence: Tensor, correct: Tensor) -> tuple[int, int]:
    there = confidence == value
    return int(there.sum()), int((correct & there).sum())


def _every(confidence: Tensor, correct: Tensor, convention: Convention) -> BinStatistics:
    n_bins, closed = convention.n_bins, convention.closed
    if convention.edges == "numpy":
        return bin_statistics(confidence, correct, n_bins, closed=closed)
    edges = edges_of(convention)
    if convention.edges != "ceil":
        return bin_statistics(confidence, correct, closed=closed, edges=edges)
    cell = (n_bins * confidence - 1).ceil().clamp(0, n_bins - 1).long()
    return BinStatistics(group_statistics(cell, confidence, correct, n_bins).table, edges, closed)

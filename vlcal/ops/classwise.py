"""Bin statistics of every class in one read of the probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlcal import _native
from vlcal.ops import _triton, reference
from vlcal.ops._dispatch import Backend, custom_op, dispatch
from vlcal.ops._inputs import check_tensors
from vlcal.ops._triton import binning
from vlcal.ops.binning import (
    BinStatistics,
    any_bad,
    check_closed,
    check_edges,
    equal_edges,
    first_bad,
    thresholds,
)
from vlcal.types import check_labels

WHO = "classwise_statistics"


@dataclass(frozen=True, eq=False)
class ClasswiseStatistics:
    """One `BinStatistics` per class, added up with `+`; the state is O(C B) for any N.

    Args:
        table: [3, C, B] int64: counts, samples of the class, sums of its probability in units of
            2^-30.
        edges: [B + 1] float64 bin edges.
        closed: "right" for (lo, hi], "left" for [lo, hi).
    """

    table: Tensor
    edges: Tensor
    closed: Literal["right", "left"] = "right"

    def __len__(self) -> int:
        return self.table.shape[1]

    def __getitem__(self, label: int) -> BinStatistics:
        return BinStatistics(self.table[:, label], self.edges, self.closed)

    def __add__(self, other: ClasswiseStatistics) -> ClasswiseStatistics:
        if not isinstance(other, ClasswiseStatistics):
            return NotImplemented
        if len(self) != len(other):
            raise ValueError(
                "ClasswiseStatistics: only statistics of the same classes can be added, "
                f"got {len(self)} and {len(other)} classes"
            )
        flat = [BinStatistics(s.table.flatten(1), s.edges, s.closed) for s in (self, other)]
        total = (flat[0] + flat[1]).table.view_as(self.table)
        return ClasswiseStatistics(total, self.edges, self.closed)

    def errors(self) -> Tensor:
        """ECE of each class, [C] float64: sum over bins of (n_b / N) |gap_b|; NaN without samples.

        Their mean is the class-wise ECE (static calibration error; Nixon et al., CVPR Workshops
        2019; Kull et al., NeurIPS 2019).
        """
        gaps = (self.table[2].double() * reference.CONFIDENCE_UNIT - self.table[1]).abs()
        return gaps.sum(-1) / self.table[0].sum(-1)


def classwise_statistics(
    probs: Tensor,
    labels: Tensor,
    n_bins: int = 15,
    *,
    closed: Literal["right", "left"] = "right",
    edges: Tensor | None = None,
    backend: str | None = None,
) -> ClasswiseStatistics:
    """For each class, its probabilities binned, with how often the class was the label.

    The bins are those of `bin_statistics`; every sample counts in every class.

    Args:
        probs: [N, C] floating point in 0..1; rows need not sum to one.
        labels: [N] integers in 0..C-1.
        n_bins: B >= 1.
        closed: "right" for (lo, hi], "left" for [lo, hi).
        edges: [B + 1] ascending float64 edges instead of `n_bins` equal ones; the first and last
            count as open.
        backend: "native", "triton" or "reference"; by default the fastest that accepts the call.

    Returns:
        ClasswiseStatistics; bit-identical for every order, batch split, thread count and backend.

    Raises:
        ValueError: shapes, dtypes or ranges break the contract; the message names the row.
        NotImplementedError: the named backend refuses these inputs; the message says why.

    Not differentiable. The native backend uses 32 C B bytes beside the result, times the number of
    threads. On a GPU it waits and is captured as `bin_statistics`.
    """
    check_tensors(WHO, probs=probs, labels=labels)
    if probs.ndim != 2 or not probs.is_floating_point() or probs.shape[1] < 1:
        raise ValueError(
            f"{WHO}: probs must be floating point [N, C] with C >= 1, "
            f"got {probs.dtype} {tuple(probs.shape)}"
        )
    labels = check_labels(WHO, labels, len(probs), None).to(probs.device)
    check_closed(WHO, closed)
    if edges is None:
        used = equal_edges(WHO, n_bins, probs.device)
    else:
        used = check_edges(WHO, edges).to(probs.device, torch.float64)
    table = _classwise_statistics(probs.detach(), labels, used, closed == "right", backend or "")
    return ClasswiseStatistics(table, used, closed)


def _refuse_value(probs: Tensor, flat: int) -> None:
    if flat >= 0:
        row, column = divmod(flat, probs.shape[1])
        raise ValueError(
            f"{WHO}: probs must be in 0..1 and not NaN, "
            f"got {float(probs[row, column])} in row {row}, class {column}"
        )


def _run_reference(probs: Tensor, labels: Tensor, edges: Tensor, right: bool) -> Tensor:
    check_labels(WHO, labels, *probs.shape)
    _refuse_value(probs, first_bad(probs.flatten()))
    return reference.classwise_statistics(probs, labels, edges, right)


def _run_native(probs: Tensor, labels: Tensor, edges: Tensor, right: bool) -> Tensor:
    check_labels(WHO, labels, *probs.shape)
    probs = probs.float().contiguous()
    above = thresholds(edges[1:-1], torch.float32, right)
    table, bad = _native.classwise_statistics(probs, labels.contiguous(), above)
    _refuse_value(probs, bad)
    return table


def _run_triton(probs: Tensor, labels: Tensor, edges: Tensor, right: bool) -> Tensor:
    above = thresholds(edges[1:-1], torch.float32, right)
    table, bad = binning.classwise_statistics(probs, labels, above)
    if any_bad(bad):
        check_labels(WHO, labels, *probs.shape)
        _refuse_value(probs, first_bad(probs.flatten()))
    return table


def _refuse_triton(probs: Tensor, *others: object) -> str | None:
    return _refuse_double(probs) or _triton.refuse_device(probs, *others)


def _refuse_double(probs: Tensor) -> str | None:
    if probs.dtype == torch.float64:
        return "float64 probabilities are not supported, only float32 and half precisions"
    return None


def _refuse(probs: Tensor, *others: object) -> str | None:
    return _refuse_double(probs) or _native.refuse_device(probs, *others)


BACKENDS = (
    Backend("native", _run_native, _native.missing, _refuse),
    Backend("triton", _run_triton, _triton.missing, _refuse_triton),
    Backend("reference", _run_reference),
)


@custom_op("vlcal::classwise_statistics")
def _classwise_statistics(
    probs: Tensor, labels: Tensor, edges: Tensor, right: bool, backend: str
) -> Tensor:
    return dispatch(WHO, BACKENDS, (probs, labels, edges, right), backend or None)


@_classwise_statistics.register_fake
def _(probs: Tensor, labels: Tensor, edges: Tensor, right: bool, backend: str) -> Tensor:
    return probs.new_empty((3, probs.shape[1], edges.shape[0] - 1), dtype=torch.int64)

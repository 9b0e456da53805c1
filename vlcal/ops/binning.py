"""Bin statistics in integers: any split and order of the samples gives the same bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlcal import _cuda, _native
from vlcal.ops import _triton, reference
from vlcal.ops._dispatch import Backend, custom_op, dispatch
from vlcal.ops._inputs import check_tensors
from vlcal.ops._triton import binning
from vlcal.ops.reference import CONFIDENCE_UNIT


@dataclass(frozen=True, eq=False)
class BinStatistics:
    """Counts, correct ones and confidence sums per bin or group, added up with `+`.

    Args:
        table: [3, B] int64: counts, correct ones, sums of confidence in units of 2^-30. A sum holds
            8.5e9 samples.
        edges: [B + 1] float64 bin edges; None for groups that are not intervals of confidence.
        closed: "right" for (lo, hi], "left" for [lo, hi).
    """

    table: Tensor
    edges: Tensor | None = None
    closed: Literal["right", "left"] = "right"

    def __add__(self, other: BinStatistics) -> BinStatistics:
        if not isinstance(other, BinStatistics):
            return NotImplemented
        same_edges = (self.edges is None) == (other.edges is None) and (
            self.edges is None or other.edges is None or torch.equal(self.edges, other.edges)
        )
        if self.table.shape != other.table.shape or not same_edges or self.closed != other.closed:
            raise ValueError(
                "BinStatistics: only statistics over the same bins can be added, "
                f"got {self.n_bins} bins closed {self.closed} "
                f"and {other.n_bins} closed {other.closed}"
            )
        return BinStatistics(self.table + other.table, self.edges, self.closed)

    @property
    def n_bins(self) -> int:
        """B."""
        return self.table.shape[1]

    @property
    def n(self) -> int:
        """Number of samples."""
        return int(self.count.sum())

    @property
    def count(self) -> Tensor:
        """Samples per bin, [B] int64."""
        return self.table[0]

    @property
    def correct(self) -> Tensor:
        """Correct samples per bin, [B] int64."""
        return self.table[1]

    @property
    def confidence(self) -> Tensor:
        """Sum of confidences per bin, [B] float64; each sample is rounded to 2^-30."""
        return self.table[2].double() * CONFIDENCE_UNIT

    def gaps(self) -> Tensor:
        """Mean confidence minus accuracy per bin, [B] float64; 0 for an empty bin."""
        return (self.confidence - self.correct) / self.count.clamp(min=1)

    def ece(self) -> float:
        """Expected calibration error: sum of (n_b / N) |gap_b| (Guo et al., ICML 2017)."""
        # a few numbers: plain Python is faster than one tensor operation each
        count, correct, units = self.table.tolist()
        if not any(count):
            self._refuse_empty("ece")
        gaps = (abs(u * CONFIDENCE_UNIT - k) for u, k in zip(units, correct, strict=True))
        return sum(gaps) / sum(count)

    def mce(self) -> float:
        """Maximum calibration error: the largest |gap_b|, however few samples it holds."""
        self._refuse_empty("mce")
        return float(self.gaps().abs().max())

    def _refuse_empty(self, name: str) -> None:
        if self.n == 0:
            raise ValueError(f"BinStatistics.{name}: needs at least one sample, got none")


def bin_statistics(
    confidence: Tensor,
    correct: Tensor,
    n_bins: int = 15,
    *,
    closed: Literal["right", "left"] = "right",
    edges: Tensor | None = None,
    backend: str | None = None,
) -> BinStatistics:
    """Count, sum of confidence and number of correct samples in bins of equal width.

    The edges are `numpy.linspace(0, 1, n_bins + 1)` in float64, and a confidence is compared with
    them exactly. A confidence of 0 is in the first bin and 1 in the last, whichever side is closed
    (Guo et al., ICML 2017).

    Args:
        confidence: [N] floating point in 0..1.
        correct: [N] bool (or integers 0 and 1).
        n_bins: B >= 1.
        closed: "right" for (lo, hi], "left" for [lo, hi).
        edges: [B + 1] ascending float64 edges instead of `n_bins` equal ones; the first and last
            count as open.
        backend: "native", "triton", "cuda" or "reference"; by default the first of these that
            accepts the call.

    Returns:
        BinStatistics; bit-identical for every order, batch split, thread count and backend.

    Raises:
        ValueError: shapes or dtypes break the contract, or a confidence is NaN or outside 0..1.

    Not differentiable. On a GPU the check of the values is the one wait for the device; `correct`
    that is not bool and given `edges` are one more. While a CUDA graph is captured the values are
    not checked, and what is no confidence is in no bin.

        >>> confidence, correct = torch.tensor([0.95, 0.85]), torch.tensor([True, False])
        >>> bins = bin_statistics(confidence, correct, n_bins=10)
        >>> bins.count[8:].tolist(), bins.correct[8:].tolist()
        ([1, 1], [0, 1])
    """
    correct = check_pairs("bin_statistics", confidence, correct)
    check_closed("bin_statistics", closed)
    if edges is None:
        used = equal_edges("bin_statistics", n_bins, confidence.device)
    else:
        used = check_edges("bin_statistics", edges).to(confidence.device, torch.float64)
    table = _bin_statistics(confidence.detach(), correct, used, closed == "right", backend or "")
    return BinStatistics(table, used, closed)


def group_statistics(
    group: Tensor,
    confidence: Tensor,
    correct: Tensor,
    n_groups: int,
    *,
    backend: str | None = None,
) -> BinStatistics:
    """The same sums for groups that are given: classes, proximity bins, any partition.

    Args:
        group: [N] integers in 0..n_groups-1.
        confidence: [N] floating point in 0..1.
        correct: [N] bool (or integers 0 and 1).
        n_groups: number of groups, >= 1.
        backend: "native", "triton" or "reference"; by default the fastest that accepts the call.

    Returns:
        BinStatistics without edges; bit-identical for every order, batch split and backend.

    Raises:
        ValueError: shapes, dtypes or ranges break the contract.

    On a GPU it waits and is captured as `bin_statistics`.
    """
    check_tensors("group_statistics", group=group)
    correct = check_pairs("group_statistics", confidence, correct)
    if group.shape != confidence.shape or group.is_floating_point() or group.dtype == torch.bool:
        raise ValueError(
            f"group_statistics: group must be [N] integers, got {group.dtype} {tuple(group.shape)}"
        )
    args = (group.long(), confidence.detach(), correct, n_groups, backend or "")
    return BinStatistics(_group_statistics(*args))


def check_pairs(who: str, confidence: Tensor, correct: Tensor) -> Tensor:
    """`correct` as bool [N], after checking both shapes and dtypes."""
    check_tensors(who, confidence=confidence, correct=correct)
    if confidence.ndim != 1 or not confidence.is_floating_point():
        raise ValueError(
            f"{who}: confidence must be floating point [N], "
            f"got {confidence.dtype} {tuple(confidence.shape)}"
        )
    if correct.shape != confidence.shape or correct.device != confidence.device:
        raise ValueError(
            f"{who}: correct must have the shape and device of confidence {tuple(confidence.shape)}"
            f" on {confidence.device}, got {tuple(correct.shape)} on {correct.device}"
        )
    if correct.dtype == torch.bool:
        return correct
    if correct.is_floating_point() or bool(((correct != 0) & (correct != 1)).any()):
        raise ValueError(f"{who}: correct must be bool, or integers 0 and 1, got {correct.dtype}")
    return correct.bool()


def check_bins(who: str, n_bins: int) -> None:
    """Refuse what is no number of bins."""
    if isinstance(n_bins, bool) or not isinstance(n_bins, int) or n_bins < 1:
        raise ValueError(f"{who}: n_bins must be an integer >= 1, got {n_bins!r}")


def check_closed(who: str, closed: str) -> None:
    """Refuse what is no side."""
    if closed not in ("right", "left"):
        raise ValueError(f"{who}: closed must be 'right' or 'left', got {closed!r}")


def equal_edges(who: str, n_bins: int, device: torch.device | str = "cpu") -> Tensor:
    """`numpy.linspace(0, 1, n_bins + 1)`: the edges of every op with bins of equal width."""
    check_bins(who, n_bins)
    # made on the device, as numpy does: nothing is copied there and nothing waits
    edges = torch.arange(n_bins + 1, dtype=torch.float64, device=device) * (1.0 / n_bins)
    return torch.cat([edges[:-1], torch.ones_like(edges[:1])])


def first_bad(confidence: Tensor) -> int:
    """First row that is NaN or outside 0..1, or -1."""
    bad = ~((confidence >= 0) & (confidence <= 1))
    return int(bad.int().argmax()) if bool(bad.any()) else -1


def refuse_row(who: str, confidence: Tensor, row: int) -> None:
    """Raise the error about that row unless it is -1."""
    if row >= 0:
        bad = int((~((confidence >= 0) & (confidence <= 1))).sum())
        raise ValueError(
            f"{who}: confidence must be in 0..1 and not NaN, "
            f"got {float(confidence[row])} in row {row} ({bad} such rows in all)"
        )


def any_bad(count: Tensor) -> bool:
    """Whether a kernel counted bad rows; not asked while a CUDA graph is being captured."""
    if count.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return bool(count)


def _run_reference(confidence: Tensor, correct: Tensor, edges: Tensor, right: bool) -> Tensor:
    refuse_row("bin_statistics", confidence, first_bad(confidence))
    return reference.bin_statistics(confidence, correct, edges, right)


def check_edges(who: str, edges: Tensor) -> Tensor:
    """The edges, refused unless they are ascending."""
    if edges.ndim != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
        raise ValueError(f"{who}: edges must be [B + 1] ascending values with B >= 1")
    return edges


def _refuse_group(group: Tensor, confidence: Tensor, n_groups: int) -> None:
    if len(group) and not 0 <= int(group.min()) <= int(group.max()) < n_groups:
        raise ValueError(
            f"group_statistics: group must be in 0..{n_groups - 1}, "
            f"got {int(group.min())}..{int(group.max())}"
        )
    refuse_row("group_statistics", confidence, first_bad(confidence))


def _group_reference(group: Tensor, confidence: Tensor, correct: Tensor, n_groups: int) -> Tensor:
    _refuse_group(group, confidence, n_groups)
    return reference.group_statistics(group, confidence, correct, n_groups)


def _group_native(group: Tensor, confidence: Tensor, correct: Tensor, n_groups: int) -> Tensor:
    values = _native.real_rows(confidence)
    table, bad = _native.group_statistics(
        group.contiguous(), values, correct.contiguous(), n_groups
    )
    if bad >= 0:
        _refuse_group(group, confidence, n_groups)
    return table


def _run_native(confidence: Tensor, correct: Tensor, edges: Tensor, right: bool) -> Tensor:
    confidence = _native.real_rows(confidence)
    above = thresholds(edges[1:-1], confidence.dtype, right)
    table, bad = _native.bin_statistics(confidence, correct.contiguous(), above)
    refuse_row("bin_statistics", confidence, bad)
    return table


def _run_triton(confidence: Tensor, correct: Tensor, edges: Tensor, right: bool) -> Tensor:
    real = torch.promote_types(confidence.dtype, torch.float32)
    above = thresholds(edges[1:-1], real, right)
    table, bad = binning.bin_statistics(confidence, correct, above)
    if any_bad(bad):
        refuse_row("bin_statistics", confidence, first_bad(confidence))
    return table


def _run_cuda(confidence: Tensor, correct: Tensor, edges: Tensor, right: bool) -> Tensor:
    confidence = confidence.float().contiguous()
    above = thresholds(edges[1:-1], torch.float32, right)
    table, bad = _cuda.bin_statistics(confidence, correct.contiguous(), above)
    if any_bad(bad):
        refuse_row("bin_statistics", confidence, first_bad(confidence))
    return table


def _refuse_cuda(confidence: Tensor, correct: Tensor, edges: Tensor, right: bool) -> str | None:
    if confidence.dtype == torch.float64:
        return "float64 confidences are not supported, only float32 and half precisions"
    if len(edges) - 1 > _cuda.MOST_BINS:
        return f"it takes up to {_cuda.MOST_BINS} bins, got {len(edges) - 1}"
    return _cuda.refuse_device(confidence, correct, edges)


def _group_triton(group: Tensor, confidence: Tensor, correct: Tensor, n_groups: int) -> Tensor:
    table, bad = binning.group_statistics(group, confidence, correct, n_groups)
    if any_bad(bad):
        _refuse_group(group, confidence, n_groups)
    return table


def thresholds(interior: Tensor, dtype: torch.dtype, right: bool) -> Tensor:
    """The smallest values of `dtype` above (right-closed) or not below the edges."""
    near = interior.to(dtype)
    short = near.double() <= interior if right else near.double() < interior
    return torch.where(short, torch.nextafter(near, torch.full_like(near, torch.inf)), near)


BACKENDS = (
    Backend("native", _run_native, _native.missing, _native.refuse_device),
    Backend("triton", _run_triton, _triton.missing, _triton.refuse_device),
    Backend("cuda", _run_cuda, _cuda.missing, _refuse_cuda),
    Backend("reference", _run_reference),
)


@custom_op("vlcal::bin_statistics")
def _bin_statistics(
    confidence: Tensor, correct: Tensor, edges: Tensor, right: bool, backend: str
) -> Tensor:
    args = (confidence, correct, edges, right)
    return dispatch("bin_statistics", BACKENDS, args, backend or None)


@_bin_statistics.register_fake
def _(confidence: Tensor, correct: Tensor, edges: Tensor, right: bool, backend: str) -> Tensor:
    return confidence.new_empty((3, edges.shape[0] - 1), dtype=torch.int64)


GROUP_BACKENDS = (
    Backend("native", _group_native, _native.missing, _native.refuse_device),
    Backend("triton", _group_triton, _triton.missing, _triton.refuse_device),
    Backend("reference", _group_reference),
)


@custom_op("vlcal::group_statistics")
def _group_statistics(
    group: Tensor, confidence: Tensor, correct: Tensor, n_groups: int, backend: str
) -> Tensor:
    args = (group, confidence, correct, n_groups)
    return dispatch("group_statistics", GROUP_BACKENDS, args, backend or None)


@_group_statistics.register_fake
def _(group: Tensor, confidence: Tensor, correct: Tensor, n_groups: int, backend: str) -> Tensor:
    return confidence.new_empty((3, n_groups), dtype=torch.int64)

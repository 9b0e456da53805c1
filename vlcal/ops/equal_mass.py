"""Bin statistics over bins of equal count, exact and without a sort of large inputs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vlcal import _cuda, _native
from vlcal.ops import _triton, reference
from vlcal.ops._dispatch import Backend, custom_op, dispatch
from vlcal.ops._triton import equal_mass
from vlcal.ops.binning import (
    BinStatistics,
    any_bad,
    check_bins,
    check_pairs,
    first_bad,
    refuse_row,
)

WHO = "equal_mass_statistics"


def equal_mass_statistics(
    confidence: Tensor,
    correct: Tensor,
    n_bins: int = 15,
    *,
    ties: Literal["together", "order"] = "together",
    backend: str | None = None,
) -> BinStatistics:
    """Count, sum of confidence and number of correct samples in bins of equal count.

    Ranks 0..N-1 are those of the ascending confidences. With ties "together", equal confidences
    that occupy the ranks r..s-1 all go to bin floor(B (r + s) / (2 N)), the bin in which the middle
    of their run lies; some bins may then hold more than others, or nothing. With ties "order",
    every sample goes to bin floor(B (2 r + 1) / (2 N)) of its own rank r, equal confidences ranked
    in the order of their rows: counts differ by at most one, but the order of the rows matters.
    Without ties both are the same. Nguyen and O'Connor, EMNLP 2015; Nixon et al., CVPR Workshops
    2019.

    Args:
        confidence: [N] floating point in 0..1; -0 is 0.
        correct: [N] bool (or integers 0 and 1).
        n_bins: B >= 1.
        ties: what happens to equal confidences at a border of two bins.
        backend: "native", "cuda", "triton" or "reference"; by default the first of these that
            accepts the call.

    Returns:
        BinStatistics without edges; the same bits for every thread count and backend, and with
        ties "together" for every order of the rows. Unlike those of fixed bins, the statistics of
        two halves do not add up to those of the whole.

    Raises:
        ValueError: shapes or dtypes break the contract, or a confidence is NaN or outside 0..1.
        NotImplementedError: the named backend refuses these inputs; the message says why.

    Not differentiable. Above 16,384 samples the native backend uses up to 4 N bytes, as much of
    them as there are samples about as sure as the borders, and 0.3 MiB per thread. On a GPU it
    waits and is captured as `bin_statistics`. "cuda" keeps ties together in up to 64 bins and takes
    6 B MiB; "triton" sorts the samples.

        >>> confidence, correct = torch.tensor([0.9, 0.6, 0.7, 0.7]), torch.ones(4).bool()
        >>> equal_mass_statistics(confidence, correct, 2).count.tolist()
        [1, 3]
        >>> equal_mass_statistics(confidence, correct, 2, ties="order").count.tolist()
        [2, 2]
    """
    correct = check_pairs(WHO, confidence, correct)
    check_bins(WHO, n_bins)
    if ties not in ("together", "order"):
        raise ValueError(f"{WHO}: ties must be 'together' or 'order', got {ties!r}")
    args = (confidence.detach(), correct, n_bins, ties == "together", backend or "")
    return BinStatistics(_equal_mass_statistics(*args))


def _run_reference(confidence: Tensor, correct: Tensor, n_bins: int, together: bool) -> Tensor:
    refuse_row(WHO, confidence, first_bad(confidence))
    return reference.equal_mass_statistics(confidence, correct, n_bins, together)


def _run_native(confidence: Tensor, correct: Tensor, n_bins: int, together: bool) -> Tensor:
    confidence = confidence.float().contiguous()
    table, bad = _native.equal_mass_statistics(confidence, correct.contiguous(), n_bins, together)
    refuse_row(WHO, confidence, bad)
    return table


def _run_triton(confidence: Tensor, correct: Tensor, n_bins: int, together: bool) -> Tensor:
    table, bad = equal_mass.by_sort(confidence, correct, n_bins, together)
    if any_bad(bad):
        refuse_row(WHO, confidence, first_bad(confidence))
    return table


def _run_cuda(confidence: Tensor, correct: Tensor, n_bins: int, together: bool) -> Tensor:
    confidence = confidence.float().contiguous()
    samples = confidence, correct.contiguous()
    table, bad = equal_mass.by_cells(*samples, n_bins, _cuda.cell_sums, _cuda.value_sums)
    if any_bad(bad):
        refuse_row(WHO, confidence, first_bad(confidence))
    return table


def _refuse_on_gpu(confidence: Tensor, n_bins: int) -> str | None:
    if confidence.dtype == torch.float64:
        return "float64 confidences are not supported, only float32 and half precisions"
    if len(confidence) >= 1 << 31 or n_bins >= 1 << 30:
        return f"it takes up to 2^31 - 1 samples, got {len(confidence)}"
    return None


def _refuse_triton(confidence: Tensor, correct: Tensor, n_bins: int, together: bool) -> str | None:
    return _refuse_on_gpu(confidence, n_bins) or _triton.refuse_device(confidence, correct)


def _refuse_cuda(confidence: Tensor, correct: Tensor, n_bins: int, together: bool) -> str | None:
    if not together:
        return "ties in the order of rows need a sort, which it does not have"
    if n_bins > equal_mass.MOST_BINS:
        return f"it takes up to {equal_mass.MOST_BINS} bins, got {n_bins}"
    return _refuse_on_gpu(confidence, n_bins) or _cuda.refuse_device(confidence, correct)


def _refuse(confidence: Tensor, correct: Tensor, n_bins: int, together: bool) -> str | None:
    if confidence.dtype == torch.float64:
        return "float64 confidences are not supported, only float32 and half precisions"
    if len(confidence) >= 1 << 32 or n_bins >= 1 << 31:
        return f"it takes up to 2^32 - 1 samples, got {len(confidence)}"
    return _native.refuse_device(confidence, correct)


BACKENDS = (
    Backend("native", _run_native, _native.missing, _refuse),
    # two passes, where they are built, read less than a sort of all samples
    Backend("cuda", _run_cuda, _cuda.missing, _refuse_cuda),
    Backend("triton", _run_triton, _triton.missing, _refuse_triton),
    Backend("reference", _run_reference),
)


@custom_op("vlcal::equal_mass_statistics")
def _equal_mass_statistics(
    confidence: Tensor, correct: Tensor, n_bins: int, together: bool, backend: str
) -> Tensor:
    return dispatch(WHO, BACKENDS, (confidence, correct, n_bins, together), backend or None)


@_equal_mass_statistics.register_fake
def _(confidence: Tensor, correct: Tensor, n_bins: int, together: bool, backend: str) -> Tensor:
    return confidence.new_empty((3, n_bins), dtype=torch.int64)

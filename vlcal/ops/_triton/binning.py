"""Launchers of the integer bin sums: tables as the native kernels give, and a count of bad rows.

Nothing here waits for the device; the count stays there for the caller to look at.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from vlcal.ops import _triton

MOST_COLUMNS = 64  # bins or groups that accumulators are kept for; more are scattered
WORD_SAMPLES = 1023
SCATTER_ROWS = 1024
CLASS_BINS = 16


def bin_statistics(
    confidence: Tensor, correct: Tensor, thresholds: Tensor
) -> tuple[Tensor, Tensor]:
    """Table [3, B] of counts, correct ones and units, and the number of bad rows [1] int32.

    Args:
        confidence: [N] floating point, any stride.
        correct: [N] bool, any stride.
        thresholds: [B - 1], float32 or (for float64 confidences) float64.
    """
    if len(thresholds) >= MOST_COLUMNS:
        values = confidence.to(thresholds.dtype)
        # what is no confidence ends in the last group at most, and is counted as bad there
        group = torch.bucketize(values.contiguous(), thresholds, right=True)
        return group_statistics(group, confidence, correct, len(thresholds) + 1)
    sums, bad = _column_sums(None, confidence, correct, _from_below(thresholds))
    return _differences(sums), bad


def group_statistics(
    group: Tensor, confidence: Tensor, correct: Tensor, n_groups: int
) -> tuple[Tensor, Tensor]:
    """The same table for groups [N] int64, and the number of rows that are bad."""
    if n_groups <= MOST_COLUMNS:
        return _column_sums(group, confidence, correct, confidence.new_empty(n_groups))
    n = len(confidence)
    programs = -(-n // SCATTER_ROWS)
    # copies, so that programs rarely meet at one address
    copies = max(1, min(programs, 64, (1 << 20) // n_groups))
    sums = group.new_zeros(copies, 3, n_groups)
    bad = group.new_zeros(1, dtype=torch.int32)
    if programs:
        with torch.cuda.device_of(confidence):
            _kernels().group_sums[(programs,)](
                group,
                confidence,
                correct.view(torch.uint8),
                sums,
                bad,
                n,
                n_groups,
                copies,
                group.stride(0),
                confidence.stride(0),
                correct.stride(0),
                BLOCK=SCATTER_ROWS,
                num_warps=4,
            )
    return sums.sum(0), bad


def classwise_statistics(
    probs: Tensor, labels: Tensor, thresholds: Tensor
) -> tuple[Tensor, Tensor]:
    """Table [3, C, B] for probs [N, C] of any strides and labels [N], and how many are bad."""
    (n, n_classes), n_bins = probs.shape, len(thresholds) + 1
    sums = labels.new_zeros(3, n_classes, n_bins)
    bad = labels.new_zeros(1, dtype=torch.int32)
    classes = min(128, 1 << (n_classes - 1).bit_length())
    rows = _tile() // (CLASS_BINS * classes)
    tiles = -(-n_classes // classes), -(-n_bins // CLASS_BINS)
    steps = max(16, min(WORD_SAMPLES, -(-n * tiles[0] * tiles[1] // (rows * _programs()))))
    if n:
        with torch.cuda.device_of(probs):
            _kernels().classwise_sums[(-(-n // (rows * steps)), *tiles)](
                probs,
                labels,
                _from_below(thresholds),
                sums,
                bad,
                n,
                n_classes,
                n_bins,
                steps,
                *probs.stride(),
                labels.stride(0),
                ROWS=rows,
                CLASSES=classes,
                BINS=CLASS_BINS,
                num_warps=4,
            )
    return _differences(sums), bad


def _column_sums(
    group: Tensor | None, confidence: Tensor, correct: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    n, n_bins = len(confidence), len(columns)
    bins = max(8, 1 << (n_bins - 1).bit_length())
    block = _tile() // bins
    steps = max(16, min(WORD_SAMPLES, -(-n // (block * _programs()))))
    sums = torch.zeros(3, n_bins, dtype=torch.int64, device=confidence.device)
    bad = torch.zeros(1, dtype=torch.int32, device=confidence.device)
    if n:
        with torch.cuda.device_of(confidence):
            _kernels().bin_sums[(-(-n // (block * steps)),)](
                sums if group is None else group,
                confidence,
                correct.view(torch.uint8),
                columns,
                sums,
                bad,
                n,
                n_bins,
                steps,
                0 if group is None else group.stride(0),
                confidence.stride(0),
                correct.stride(0),
                BLOCK=block,
                BINS=bins,
                GROUPS=group is not None,
                num_warps=8 if bins == 64 else 4,
            )
    return sums, bad


def _kernels() -> Any:
    return import_module("vlcal.ops._triton.binning_kernels")


def _tile() -> int:
    """Accumulators of one program: what fits into registers; many where a step costs the most."""
    return 1 << 16 if _triton.interpreted() else 4096


def _programs() -> int:
    """Programs that keep the device busy; few where they run one after another."""
    return 4 if _triton.interpreted() else 2048


def _from_below(thresholds: Tensor) -> Tensor:
    return torch.nn.functional.pad(thresholds, (1, 0), value=-torch.inf)


def _differences(sums: Tensor) -> Tensor:
    """From sums over what reaches a bin to sums of what stays in it."""
    return sums - torch.nn.functional.pad(sums[..., 1:], (0, 1))

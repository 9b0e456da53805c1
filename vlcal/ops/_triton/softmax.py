"""Launcher of the softmax statistics of stored logits; nothing here waits for the device."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

WIDEST = 4096  # classes looked at together
TILE = 2048  # logits of one program if a row has fewer


def softmax_statistics(logits: Tensor, labels: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
    """Of logits [N, C], any strides: the fields of SoftmaxStatistics, and the number of bad rows.

    The log-likelihood is empty without labels [N] int64; a bad row has NaN.
    """
    n, classes = logits.shape
    predicted = logits.new_empty(n, dtype=torch.int64)
    confidence, entropy, squares = (logits.new_empty(n, dtype=torch.float32) for _ in range(3))
    likelihood = logits.new_empty(0 if labels is None else n, dtype=torch.float32)
    bad = logits.new_zeros(1, dtype=torch.int32)
    block = min(WIDEST, max(16, 1 << (classes - 1).bit_length()))
    rows = max(1, TILE // block)
    if n:
        kernels: Any = import_module("vlcal.ops._triton.softmax_kernels")
        with torch.cuda.device_of(logits):
            by_rows = logits.stride(1) == 1
            kernel = kernels.softmax_rows if by_rows else kernels.softmax_columns
            kernel[(-(-n // rows),)](
                logits,
                predicted if labels is None else labels,
                predicted,
                confidence,
                entropy,
                likelihood,
                squares,
                bad,
                n,
                classes,
                *logits.stride(),
                0 if labels is None else labels.stride(0),
                LABELS=labels is not None,
                ROWS=rows,
                BLOCK=block,
                num_warps=8 if block == WIDEST else 4,
            )
    return (predicted, confidence, entropy, likelihood, squares), bad

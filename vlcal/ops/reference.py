"""The oracle: every op in plain PyTorch, written to be checked against the papers and believed.

Floating-point ops compute in the precision of their inputs (half precisions in float32), so that
float64 inputs give the truth other backends are measured against. Exact ops give the float64 answer
whatever the input dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

CONFIDENCE_UNIT = 2.0**-30


def bin_index(confidence: Tensor, edges: Tensor, right: bool) -> Tensor:
    """Bin of each confidence [N]: (lo, hi] if `right`, else [lo, hi), by float64 edges [B + 1]."""
    # the interior edges alone decide, so 0 is in the first bin and 1 in the last
    return torch.bucketize(confidence.double(), edges[1:-1].contiguous(), right=not right)


def group_statistics(group: Tensor, confidence: Tensor, correct: Tensor, n_groups: int) -> Tensor:
    """Per group: counts, correct ones, confidence sums in units of 2^-30: [3, n_groups]."""
    units = (confidence.double() / CONFIDENCE_UNIT).round().long()
    values = torch.stack([torch.ones_like(units), correct.long(), units])
    table = torch.zeros(3, n_groups, dtype=torch.int64, device=confidence.device)
    return table.index_add_(1, group, values)


def bin_statistics(confidence: Tensor, correct: Tensor, edges: Tensor, right: bool) -> Tensor:
    """The same per bin: [3, B] int64."""
    return group_statistics(
        bin_index(confidence, edges, right), confidence, correct, len(edges) - 1
    )

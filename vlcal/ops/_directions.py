"""Few directions that hold most of the keys' variance: what an index screens before all D.

They decide how fast a search is, never what it finds: the native screen bounds what lies outside
their span for every key (csrc/cpu/screen.h).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlcal import _native

SAMPLE = 4096
STEP = 32
# the number of neighbors the choice is made for
TYPICAL = 10
# rounding to int8 loosens the bounds by about this share of |query| |key|
ROUNDING = 0.02
# a candidate costs as much as so many dimensions of an int8 score, four times fewer of a float
# score, and a score has this beside them
CANDIDATE = 12_000.0
SCORE = 16


def leading_directions(keys: Tensor) -> Tensor | None:
    """Orthonormal directions [d, D] float32 with the least expected cost; None if none saves.

    Principal directions of a sample of the keys, which stand for the queries too, in a random basis
    of their span: projections on it have no long tail, so they round well.
    """
    n, dim = keys.shape
    if n < SAMPLE or dim < 4 * STEP:
        return None
    sample = keys[:: n // SAMPLE][:SAMPLE].double()
    sample = sample - sample.mean(0)
    sample = (sample / sample.abs().amax().clamp(min=1e-300)).float()
    try:
        axes = torch.linalg.eigh(sample.T @ sample).eigenvectors.flip(1)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        return None
    # as near as the last of the typical neighbors among all keys, and the query itself
    count = _cheapest(sample @ axes, 2 + TYPICAL * SAMPLE // n)
    if count is None:
        return None
    noise = torch.randn(count, count, generator=torch.Generator().manual_seed(0))
    return (axes[:, :count] @ torch.linalg.qr(noise).Q).T.contiguous()


def _cheapest(sample: Tensor, rank: int) -> int | None:
    """How many leading coordinates of [n, D] to screen; every 32nd row plays the query."""
    dim = sample.shape[1]
    queries = sample[:: SAMPLE // 128]
    lengths = sample.norm(dim=1)
    half = 0.5 * lengths.square()
    reached = (queries @ sample.T - half).topk(rank + 1).values[:, -1:]
    candidate = CANDIDATE if "vnni" in _native.instruction_sets() else CANDIDATE / 4
    slack = ROUNDING * queries.norm(dim=1)[:, None] * lengths
    costs = {}
    for count in range(STEP - 4, dim * 3 // 4, STEP):
        inside = queries[:, :count] @ sample[:, :count].T
        outside = queries[:, count:].norm(dim=1)[:, None] * sample[:, count:].norm(dim=1)
        kept = (inside + outside + slack - half >= reached).float().mean()
        costs[count] = SCORE + count + 4 + candidate * float(kept)
    best = min(costs, key=costs.__getitem__)
    return best if costs[best] < 0.8 * (dim + SCORE) else None

"""How close an image is to the hold-out images, and how well calibrated the close and far are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlcal.metrics.cells import EQUAL_MASS
from vlcal.metrics.conventions import STANDARD, Convention
from vlcal.metrics.conventions import convention as convention_named
from vlcal.metrics.needs import need, undefined
from vlcal.ops import group_statistics, knn, proximity
from vlcal.types import Outcomes


def image_proximity(
    images: Tensor,
    holdout: Tensor,
    convention: str | Convention = STANDARD,
    *,
    k: int | None = None,
    exclude_self: bool = False,
) -> Tensor:
    """Proximity of each image to its nearest hold-out images, in 0..1; what PIECE needs.

    exp(-mean distance), or the mean of exp(-squared distance) where the convention says so: the
    code of DAC has the former with 5 neighbors (10 on ImageNet), that of ProCal the latter with 10.

    Args:
        images: [N, D], unit norm.
        holdout: [M, D] images of the calibration set, unit norm.
        convention: whose form, and how many neighbors.
        k: another number of neighbors, 1 <= k <= M, or <= M - 1 with `exclude_self`.
        exclude_self: the images are the hold-out images, and none counts itself as a neighbor.

    Returns:
        [N] float32.

    Raises:
        ValueError: shapes, dtypes or k break the contract, or a row holds NaN or infinity.

    Xiong et al., "Proximity-Informed Calibration for Deep Neural Networks", NeurIPS 2023.
    """
    rule = convention_named(convention)
    k = rule.neighbors if k is None else k
    if rule.proximity == "exp of mean":
        return proximity(images, holdout, k, exclude_self=exclude_self)
    distance, _ = knn(images, holdout, k, exclude_self=exclude_self)
    return (-distance.double().square()).exp().mean(-1).float()


class ProximityTable(NamedTuple):
    """Columns over bins of equal count, nearest last, all [B]; means of an empty bin are NaN.

    `count` samples, their mean `proximity`, mean `confidence`, `accuracy` and signed `gap`,
    confidence minus accuracy: positive is over-confident.
    """

    count: Tensor
    proximity: Tensor
    confidence: Tensor
    accuracy: Tensor
    gap: Tensor


def proximity_table(
    outcomes: Outcomes, convention: str | Convention = STANDARD, n_bins: int | None = None
) -> ProximityTable:
    """Calibration of the images by how close they are to the hold-out images (proximity bias).

    Args:
        outcomes: with `proximity`.
        convention: its bins of proximity.
        n_bins: another number of bins.

    Raises:
        MissingInput: the outcomes carry no proximity, or the convention has no bins of it.
    """
    rule = convention_named(convention)
    near = need("proximity_table", outcomes, "proximity").to(outcomes.confidence.device)
    n_bins = rule.piece_proximity_bins if n_bins is None else n_bins
    if rule.equal_mass is None or n_bins is None:
        raise undefined("proximity_table", "bins of proximity", rule)
    cell = EQUAL_MASS[rule.equal_mass](near, n_bins)
    sums = group_statistics(cell, outcomes.confidence, outcomes.correct, n_bins)
    count = sums.count.double()
    mean = torch.zeros_like(count).index_add_(0, cell, near.double()) / count
    gap = torch.where(count > 0, sums.gaps(), torch.nan)
    return ProximityTable(sums.count, mean, sums.confidence / count, sums.correct / count, gap)

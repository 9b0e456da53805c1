"""From the arrays users hold to checked tensors, or a sentence that says what is wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlcal._arrays import as_tensor
from vlcal.types import check_finite, check_labels

# how far the probabilities of a row may sum from 1, by their precision
SUM_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 3e-2}


def matrix(who: str, value: Any) -> Tensor:
    """A floating-point tensor [N, C] with C >= 1."""
    tensor = as_tensor(who, value)
    if tensor.ndim != 2 or tensor.shape[1] < 1 or not tensor.is_floating_point():
        raise ValueError(
            f"{who}: must be floating point [N, C] with C >= 1, "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    return tensor


def label_vector(who: str, value: Any, like: Tensor, *, any_value: bool = False) -> Tensor:
    """Labels [N] int64 in 0..C-1, or any integers, for the matrix [N, C], on its device."""
    if value is None:
        raise ValueError(f"{who}: needs labels [N], got none")
    labels = as_tensor(f"{who}: labels", value)
    if labels.ndim == 2 and labels.shape == like.shape:
        raise ValueError(
            f"{who}: labels must be [N] class indices, got one row per sample "
            f"{tuple(labels.shape)}; labels.argmax(-1) turns one-hot rows into indices"
        )
    n, n_classes = like.shape
    return check_labels(who, labels, n, None if any_value else n_classes).to(like.device)


def check_logits(who: str, logits: Tensor) -> None:
    """Raise a ValueError unless logits are finite and reach beyond the range of cosines."""
    check_finite(f"{who}: logits", logits)
    check_no_cosines(who, logits)


def check_no_cosines(who: str, logits: Tensor) -> None:
    """Raise a ValueError if all logits lie where cosines and probabilities do."""
    if logits.numel() and bool((torch.stack(logits.aminmax()).abs() <= 1).all()):
        raise ValueError(
            f"{who}: all logits lie in -1..1, like cosine similarities or probabilities do; "
            "multiply cosines by the model's logit scale (about 100 for CLIP), give probabilities "
            "as probs=, or say validate=False (--trust) if these are logits"
        )


def check_unit_range(who: str, values: Tensor) -> None:
    """Raise a ValueError with count and first row unless all values lie in 0..1."""
    rows = outside_unit_range(values)
    if bool(rows.any()):
        first = int(rows.int().argmax())
        bad = values[first][~((values[first] >= 0) & (values[first] <= 1))]
        value = float(bad.reshape(-1)[0])
        raise ValueError(
            f"{who} must be in 0..1, got {value:g} in row {first} ({int(rows.sum())} such rows)"
        )


def check_probs(who: str, probs: Tensor) -> None:
    """Raise a ValueError with count and first row unless rows are probabilities that sum to 1."""
    check_unit_range(f"{who}: probs", probs)
    bad = off_in_sum(probs)
    if bool(bad.any()):
        first = int(bad.int().argmax())
        total, tolerance = float(probs[first].sum(dtype=torch.float64)), _tolerance(probs)
        raise ValueError(
            f"{who}: every row of probs must sum to 1 (within {tolerance:g} for {probs.dtype}), "
            f"got {total:g} in row {first} ({int(bad.sum())} such rows)"
        )


def not_finite(values: Tensor) -> Tensor:
    """Rows [N] of values [N, ...] that hold NaN or an infinity."""
    return ~_whole_rows(values.isfinite())


def outside_unit_range(values: Tensor) -> Tensor:
    """Rows [N] of values [N, ...] that hold NaN or a number outside 0..1."""
    return ~_whole_rows((values >= 0) & (values <= 1))


def _whole_rows(good: Tensor) -> Tensor:
    """Rows [N] that are good in every value [N, ...]; N may be 0."""
    return good[:, None].flatten(1).all(-1)


def off_in_sum(probs: Tensor) -> Tensor:
    """Rows [N] of probabilities [N, C] that do not sum to 1; false for NaN."""
    return (probs.sum(-1, dtype=torch.float64) - 1).abs() > _tolerance(probs)


def _tolerance(probs: Tensor) -> float:
    return SUM_TOLERANCE.get(probs.dtype, 1e-4)

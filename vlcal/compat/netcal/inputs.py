"""How netcal reads its arrays: one column of confidences, or one per class; labels or one-hot."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vlcal._arrays import as_tensor
from vlcal.types import NoSamplesError

Array = np.ndarray


def refuse(who: str, option: str, value: Any, why: str) -> None:
    """Refuse an option of netcal that is not supported, by name."""
    raise NotImplementedError(f"{who}: {option}={value!r} is not supported, {why}")


def confidences(who: str, X: Any) -> Array:
    """Floating point [N] or [N, C] in 0..1, in its own precision; axes of size 1 are dropped."""
    array = as_tensor(f"{who}: X", X).cpu().numpy()
    if array.ndim == 3:
        refuse(who, "X.ndim", 3, "only one prediction per sample is, [N] or [N, C]")
    array = _squeezed(array)
    if array.ndim not in (1, 2) or array.dtype.kind != "f":
        raise ValueError(
            f"{who}: X must be floating point [N] or [N, C], got {array.dtype} {array.shape}"
        )
    if len(array) == 0:
        raise NoSamplesError(f"{who}: needs at least one sample, got none")
    bad = ~((array >= 0) & (array <= 1)).reshape(len(array), -1).all(1)
    if bad.any():
        raise ValueError(
            f"{who}: X must be probabilities in 0..1 and not NaN, row {int(bad.argmax())} is not "
            f"({int(bad.sum())} such rows)"
        )
    return array


def labels(who: str, y: Any, n: int) -> Array:
    """[N] int64 class indices from indices or one-hot rows; two columns mean the second."""
    array = _squeezed(as_tensor(f"{who}: y", y).cpu().numpy())
    if array.ndim == 2:
        array = array[:, -1] if array.shape[1] <= 2 else array.argmax(1)
    if array.shape != (n,):
        raise ValueError(f"{who}: y must be [N] = [{n}] labels or one-hot, got {array.shape}")
    whole = array.astype(np.int64)
    if (whole != array).any() or (whole < 0).any():
        raise ValueError(f"{who}: y must be class indices 0, 1, ..., got {array.min()} among them")
    return whole


def problem(who: str, X: Any, y: Any, independent: bool) -> tuple[Array, Array, int]:
    """What `fit` of netcal makes of its arrays: confidences, labels and the number of classes.

    One column, or two that are not independent, are a binary problem: confidences [N] of class 1.
    """
    array = confidences(who, X)
    one_hot = np.ndim(y) == 2 and np.shape(y)[1] > 2
    wide = array.shape[1] if array.ndim == 2 else 1
    if one_hot and np.shape(y)[1] != wide:
        raise ValueError(f"{who}: y has {np.shape(y)[1]} columns and X has {wide}")
    if array.ndim == 2 and np.ndim(y) == 2 and wide == 2 and independent:
        truth = labels(who, np.asarray(y).argmax(1), len(array))
    else:
        truth = labels(who, y, len(array))
    n_classes = max(2, wide)
    if truth.max() >= n_classes:
        raise ValueError(
            f"{who}: y must be in 0..{n_classes - 1} (X has {n_classes} classes), got {truth.max()}"
        )
    if array.ndim == 2 and wide == 2 and not independent:
        array = array[:, -1]
    return array, truth, n_classes


def applicable(who: str, X: Any, n_classes: int, independent: bool) -> Array:
    """Confidences for `transform` of what was fitted on `n_classes` classes."""
    array = confidences(who, X)
    wide = array.shape[1] if array.ndim == 2 else 1
    if wide != n_classes and not (wide == 1 and n_classes == 2):
        raise ValueError(f"{who}: fitted on {n_classes} classes, got X {array.shape}")
    if wide == 2 and not independent:
        return array[:, -1]
    return array


def clipped(X: Array) -> Array:
    """Confidences at least eps away from 0 and 1, eps of their precision."""
    eps = np.finfo(X.dtype).eps
    return np.clip(X, eps, 1 - eps)


def tensors(X: Array, y: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as tensors of the same memory."""
    return torch.from_numpy(np.ascontiguousarray(X)), torch.from_numpy(y)


def _squeezed(array: Array) -> Array:
    return array.reshape([size for axis, size in enumerate(array.shape) if axis == 0 or size != 1])

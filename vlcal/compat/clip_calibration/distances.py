"""Nearest-neighbor distances and distance-aware calibration under the published code's names."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vlcal._arrays import as_tensor
from vlcal.calibrators import NotFitted
from vlcal.ops import knn

SPARE = 16  # neighbors looked at beside the k
BLOCK = 1024  # classes compared with their shortlists at a time


def get_knn_dists(val_base_class_features: Any, image_features_cur: Any, K_nns: int) -> np.ndarray:
    """Distances [N, K] float32 of every current feature to its K nearest hold-out ones, ascending.

    The published code needs a GPU and compares one row after the other; this is exact on the CPU.

    Args:
        val_base_class_features: [M, D].
        image_features_cur: [N, D].
        K_nns: 1 <= K <= M.

    Raises:
        ValueError: shapes or K break this, or a feature is not finite.
    """
    keys = as_tensor("get_knn_dists: val_base_class_features", val_base_class_features)
    queries = as_tensor("get_knn_dists: image_features_cur", image_features_cur)
    return knn(queries.float(), keys.float(), K_nns).distance.numpy()


def get_val_image_knn_dists(image_features_cur: Any, K_nns: int) -> np.ndarray:
    """Distances [N, K] float32 of every feature to its K nearest other ones, ascending.

    Args:
        image_features_cur: [N, D].
        K_nns: 1 <= K <= N - 1.

    Raises:
        ValueError: shapes or K break this, or a feature is not finite.
    """
    features = as_tensor("get_val_image_knn_dists: image_features_cur", image_features_cur).float()
    return knn(features, features, K_nns, exclude_self=True).distance.numpy()


class DistanseAwareCalibration:
    """Distance-aware calibration with the published code's rules, spelling and precision.

    `vlcal.calibrators.DistanceAware` is the same method with names instead of the 0.05 rule and
    float32 by default.

    Attributes:
        class_confidence: [C] factors after `fit`: 1 where the nearest tuned base feature is closer
            than 0.05, else the ratio of exp(-mean distance to the k nearest base classes), tuned
            over zero-shot.

    Quirks kept: everything is computed in the precision of the features, so float16 features give
    float16 distances, means and factors, bit by bit those of NumPy 2; with fewer than k base
    classes fewer distances are added but still divided by k; factors are not clamped.
    """

    class_confidence: np.ndarray | None = None

    def fit(
        self,
        base_text_features_zs: Any,
        current_text_features_zs: Any,
        base_text_features_tuned: Any,
        current_text_features_tuned: Any,
        k: int,
    ) -> None:
        """Compute the factor of every current class.

        Args:
            base_text_features_zs: [M, D] zero-shot text features of the base classes.
            current_text_features_zs: [C, D] of the classes to predict.
            base_text_features_tuned: [M, D] of the tuned model.
            current_text_features_tuned: [C, D] of the tuned model.
            k: nearest base classes averaged over, >= 1.

        Raises:
            ValueError: shapes or k break this, or a feature is not finite.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"DistanseAwareCalibration: k must be an integer >= 1, got {k!r}")
        zero_shot = nearest(current_text_features_zs, base_text_features_zs, k)
        tuned = nearest(current_text_features_tuned, base_text_features_tuned, k)
        if len(zero_shot) != len(tuned):
            raise ValueError(
                "DistanseAwareCalibration: current_text_features_zs and _tuned must have the same "
                f"classes, got {len(zero_shot)} and {len(tuned)}"
            )
        ratio = _proximity(tuned, k) / _proximity(zero_shot, k)
        base = tuned[:, 0] < 0.05
        # a list that holds the Python number 1.0 becomes float64
        dtype = np.float64 if base.any() else ratio.dtype
        self.class_confidence = np.where(base, 1.0, ratio.astype(dtype))

    def predict(self, logits: Any) -> np.ndarray:
        """Logits [N, C] float32, every row times the factor of its first argmax.

        Raises:
            NotFitted: `fit` was not called.
            ValueError: logits are not [N, C] with the C classes of `fit`.
        """
        if self.class_confidence is None:
            raise NotFitted("DistanseAwareCalibration: fit comes before predict")
        rows = np.asarray(logits, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != len(self.class_confidence):
            raise ValueError(
                "DistanseAwareCalibration: logits must be [N, C] with the "
                f"{len(self.class_confidence)} classes of fit, got {rows.shape}"
            )
        return rows * self.class_confidence.astype(np.float32)[rows.argmax(1), None]


def _proximity(distance: np.ndarray, k: int) -> np.ndarray:
    return np.exp(-distance.sum(axis=1) / k)


def nearest(current: Any, base: Any, k: int) -> np.ndarray:
    """The k smallest `numpy.linalg.norm(base - row)` of every row, ascending, in NumPy's rounding.

    A shortlist of the exact k + 16 nearest is compared in the precision of the features. Where
    rounding could let one from outside in, the row is compared with all.

    Returns:
        [C, min(k, M)], of the common dtype of the features.
    """
    rows, keys = np.asarray(current), np.asarray(base)
    k, wide = min(k, len(keys)), min(k + SPARE, len(keys))
    short = knn(_exact(rows), _exact(keys), wide)
    dtype = np.result_type(rows, keys)
    found = np.empty((len(rows), k), dtype)
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        gap = keys[short.index[block].numpy()] - rows[block, None]
        found[block] = np.sort(np.linalg.norm(gap, axis=-1), axis=-1)[:, :k]
    if wide < len(keys):
        reach = _least(short.distance[:, -1].double().numpy(), keys.shape[1], np.finfo(dtype))
        for row in np.flatnonzero(found[:, -1] >= reach):
            found[row] = np.sort(np.linalg.norm(keys - rows[row], axis=1))[:k]
    return found


def _exact(features: np.ndarray) -> torch.Tensor:
    tensor = as_tensor("DistanseAwareCalibration", features)
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _least(distance: np.ndarray, width: int, kind: np.finfo) -> np.ndarray:
    """The least that NumPy can make of exact distances in D = `width` dimensions by rounding."""
    # every square may lose half a subnormal, the sums and the root some units in the last place;
    # the exact distances are known as float32
    underflow = width * float(kind.smallest_subnormal)
    share = 1 - 16 * float(kind.eps) - 2.0**-22
    return np.sqrt(np.maximum(distance**2 * share - underflow, 0))

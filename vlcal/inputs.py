"""Arrays and predictions that are named on the command line, read from their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlcal.data.features import read_arrays
from vlcal.types import Predictions


def read_array(spec: str) -> np.ndarray:
    """The array of `FILE.npy`, or of `FILE.npz:NAME` (the name may be left out if there is one)."""
    path, colon, name = spec.rpartition(":")
    if not colon or Path(spec).is_file():
        path, name = spec, ""
    arrays = read_arrays(path)
    if not name and len(arrays) == 1:
        return next(iter(arrays.values()))
    if name not in arrays:
        example = f"{path}:{next(iter(arrays), 'NAME')}"
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; name one, as in {example}"
        )
    return arrays[name]


def read_features_of(
    image: str | None, text: str | None, scale: float | None, labels: str | None
) -> Predictions:
    """Predictions without stored logits from the files of --image-features and its companions."""
    if image is None or text is None or scale is None or labels is None:
        raise ValueError(
            "evaluate: --image-features, --text-features, --logit-scale and --labels go together"
        )
    rows = [torch.from_numpy(np.asarray(read_array(spec), np.float32)) for spec in (image, text)]
    units = [torch.nn.functional.normalize(each, dim=-1) for each in rows]
    return Predictions(
        labels=_integers(labels), image_features=units[0], text_features=units[1], logit_scale=scale
    )


def read_pair(
    logits: str | None,
    labels: str | None,
    val_logits: str | None,
    val_labels: str | None,
    val: str | None,
    test: str | None,
    seed: int,
) -> tuple[Predictions, Predictions, str]:
    """What to fit on, what to calibrate, and a sentence that says how they were chosen."""
    if val is not None and test is not None and logits is None:
        return (
            Predictions.load(val),
            Predictions.load(test),
            f"Fitted on {val}, measured on {test}.",
        )
    if logits is None or labels is None or val is not None or test is not None:
        raise ValueError("calibrate: give --logits and --labels, or --val and --test")
    given = _logits(logits, labels)
    if (val_logits is None) != (val_labels is None):
        raise ValueError("calibrate: --val-logits and --val-labels go together")
    if val_logits is not None and val_labels is not None:
        how = f"Fitted on {val_logits}, measured on {logits}."
        return _logits(val_logits, val_labels), given, how
    if len(given) < 2:
        raise ValueError(f"calibrate: two rows are needed to cut in halves, got {len(given)}")
    order = torch.randperm(len(given), generator=torch.Generator().manual_seed(seed))
    half = len(given) // 2
    how = (
        f"Fitted on {half:,} random rows of {logits}, measured on the other {len(given) - half:,}."
    )
    return given.select(order[:half]), given.select(order[half:].sort().values), how


def _logits(logits: str, labels: str) -> Predictions:
    values = torch.from_numpy(np.array(read_array(logits)))
    return Predictions(logits=values, labels=_integers(labels))


def _integers(spec: str) -> Tensor:
    values = read_array(spec)
    if values.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got {values.dtype} in {spec}")
    return torch.from_numpy(values.astype(np.int64))

"""Arrays and predictions that are named on the command line, read from their files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vlcal.data.features import read_arrays
from vlcal.metrics.arrays import check_logits, check_probs, matrix
from vlcal.types import Predictions

FLOOR = torch.finfo(torch.float32).tiny  # what a probability of 0 becomes before its logarithm
AS_LOGARITHMS = "Probabilities were taken as logits by their logarithm."


def _flag(about: str) -> Any:
    return field(default=None, metadata={"help": about})


@dataclass(frozen=True)
class Arrays:
    """Files of one set of images; what an array is is said by its flag, never guessed."""

    prefix: ClassVar[str] = ""

    logits: str | None = _flag("[N, C], already multiplied by the model's logit scale.")
    probs: str | None = _flag("[N, C], rows sum to 1.")
    labels: str | None = _flag("[N] integers in 0..C-1.")
    image_features: str | None = _flag("[N, D]; rows are normalized.")
    text_features: str | None = _flag("[C, D]; rows are normalized.")
    logit_scale: float | None = _flag("the factor on cosines, 100 for released CLIPs.")
    classes: str | None = _flag("text file with one class name per line, in label order.")

    def flag(self, name: str) -> str:
        """The flag of a field, as people type it."""
        return "--" + (self.prefix + name).replace("_", "-")


@dataclass(frozen=True)
class TunedArrays(Arrays):
    """The same, and the untuned model on the same images and classes."""

    zero_shot_logits: str | None = _flag("[N, C] of the untuned model on the same images.")
    zero_shot_text_features: str | None = _flag("[C, D] of the untuned model.")
    zero_shot_image_features: str | None = _flag(
        "[N, D] of the untuned model; by default those of --image-features."
    )


@dataclass(frozen=True)
class ValArrays(TunedArrays):
    """The same of validation images; what concerns classes is by default that of the others."""

    prefix: ClassVar[str] = "val_"

    def completed(self, given: TunedArrays) -> ValArrays:
        """With what the test arrays share: the scale, and the classes unless some are given."""
        shared = {"logit_scale": self.logit_scale or given.logit_scale}
        if self.text_features is None and self.classes is None:
            names = ("text_features", "zero_shot_text_features", "classes")
            shared |= {name: getattr(self, name) or getattr(given, name) for name in names}
        return replace(self, **shared)


def read_array(spec: str) -> np.ndarray:
    """The array of `FILE.npy`, or of `FILE.npz:NAME` (the name may be left out if there is one)."""
    path, colon, name = spec.rpartition(":")
    if not colon or Path(spec).is_file():
        path, name = spec, ""
    arrays = read_arrays(path, only=name or None)
    if not name and len(arrays) == 1:
        return next(iter(arrays.values()))
    if name not in arrays:
        example = f"{path}:{next(iter(arrays), 'NAME')}"
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; name one, as in {example}"
        )
    return arrays[name]


def read_units(spec: str | None) -> Tensor | None:
    """Features [rows, D] as float32 rows of length 1; None of None."""
    if spec is None:
        return None
    rows = torch.from_numpy(np.array(read_array(spec), np.float32))
    if rows.ndim != 2:
        raise ValueError(f"features must be [rows, D], got shape {tuple(rows.shape)} in {spec}")
    return torch.nn.functional.normalize(rows, dim=-1)


def read_names(path: str) -> tuple[str, ...]:
    """The names of a text file, one per line; empty lines are left out."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def read_predictions(who: str, given: Arrays, *, trust: bool = False) -> tuple[Predictions, str]:
    """Predictions of the arrays that are given, and what was assumed in doing so.

    Args:
        who: the command, for messages.
        given: either logits, or probs, or image and text features with a logit scale; labels,
            features and names as far as they are given.
        trust: take logits that all lie in -1..1, which look like cosines.

    Raises:
        ValueError: none or several kinds are given, or an array breaks its contract.
    """
    if given.logits and given.probs:
        raise ValueError(f"{who}: give {given.flag('logits')} or {given.flag('probs')}, not both")
    if not (given.logits or given.probs) and None in (
        given.image_features,
        given.text_features,
        given.logit_scale,
    ):
        raise ValueError(
            f"{who}: give {given.flag('logits')}, or {given.flag('probs')}, or "
            f"{given.flag('image_features')}, {given.flag('text_features')} and --logit-scale"
        )
    notes = []
    fields: dict[str, Any] = {
        "image_features": read_units(given.image_features),
        "text_features": read_units(given.text_features),
        "labels": None if given.labels is None else _integers(given.labels),
        "class_names": None if given.classes is None else read_names(given.classes),
        "logit_scale": given.logit_scale,
    }
    if given.logits:
        fields["logits"] = matrix(f"{who}: {given.flag('logits')}", _floats(given.logits))
        if not trust:
            check_logits(who, fields["logits"])
    elif given.probs:
        probs = matrix(f"{who}: {given.flag('probs')}", _floats(given.probs))
        check_probs(who, probs)
        fields["logits"] = probs.clamp(min=FLOOR).log()
        notes.append(AS_LOGARITHMS)
    if isinstance(given, TunedArrays):
        fields["zero_shot"], note = _zero_shot(who, given, fields)
        notes += note
    return Predictions(**fields), " ".join(notes)


def _zero_shot(
    who: str, given: TunedArrays, tuned: dict[str, Any]
) -> tuple[Predictions | None, list[str]]:
    names = ("zero_shot_logits", "zero_shot_text_features", "zero_shot_image_features")
    logits, text, image = (getattr(given, name) for name in names)
    if (logits, text, image) == (None, None, None):
        return None, []
    own = read_units(image) if image else tuned["image_features"]
    if logits is None and (text is None or own is None or given.logit_scale is None):
        raise ValueError(
            f"{who}: the untuned model needs {given.flag(names[0])}, or {given.flag(names[1])} "
            f"with {given.flag('image_features')} and --logit-scale"
        )
    twin = Predictions(
        logits=None if logits is None else _floats(logits),
        image_features=own,
        text_features=read_units(text),
        logit_scale=given.logit_scale,
        class_names=tuned["class_names"],
    )
    same = image is None and logits is None
    note = "The untuned model was taken to have the same image features."
    return twin, [note] if same else []


def halves(
    given: Predictions, source: str, seed: int, who: str = "calibrate"
) -> tuple[Predictions, Predictions, str]:
    """A random half to fit on, the other half, and a sentence that says so."""
    if len(given) < 2:
        raise ValueError(f"{who}: two rows are needed to cut in halves, got {len(given)}")
    order = torch.randperm(len(given), generator=torch.Generator().manual_seed(seed))
    half = len(given) // 2
    how = (
        f"Fitted on {half:,} random rows of {source}, measured on the other {len(given) - half:,}."
    )
    return given.select(order[:half]), given.select(order[half:].sort().values), how


def _floats(spec: str) -> Tensor:
    # a copy, because arrays of files may be read-only
    return torch.from_numpy(np.array(read_array(spec)))


def _integers(spec: str) -> Tensor:
    values = read_array(spec)
    if values.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be integers, got {values.dtype} in {spec}; whole numbers become such by "
            "labels.astype('int64')"
        )
    return torch.from_numpy(values.astype(np.int64))

"""The nouns everything exchanges: ClassSet, Batch, Outputs, Predictions, Outcomes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vlcal import _native
from vlcal._arrays import as_tensor
from vlcal._files import write_atomic

BLOCK_BYTES = 64 << 20
_TENSORS = ("logits", "labels", "image_features", "text_features", "row_scale", "predicted_scale")


class VlcalWarning(UserWarning):
    """Every warning of this package; the message is one sentence with the way out."""


class NoSamplesError(ValueError):
    """A number was asked of zero samples: there is none, and 0 would look like a result."""


@dataclass(frozen=True)
class ClassSet:
    """Class names in label order, and the template that turns a name into a prompt.

    Args:
        names: one name per label; underscores are kept here and become spaces in prompts.
        template: a prompt with exactly one `{}`.
    """

    names: tuple[str, ...]
    template: str = "a photo of a {}."

    def __post_init__(self) -> None:
        if isinstance(self.names, str):
            raise ValueError("ClassSet: names must be a sequence of strings, got one string")
        object.__setattr__(self, "names", tuple(self.names))
        for label, name in enumerate(self.names):
            if not isinstance(name, str) or not name.strip():
                raise ValueError(
                    "ClassSet: every name must be a non-empty string, "
                    f"got {name!r} for label {label}"
                )
        if self.template.count("{}") != 1:
            raise ValueError(
                f"ClassSet: template must contain exactly one {{}}, got {self.template!r}"
            )

    def __len__(self) -> int:
        return len(self.names)

    def prompts(self) -> list[str]:
        """The template filled with every name, in label order."""
        return [self.fill(name) for name in self.names]

    def fill(self, word: str) -> str:
        """The template filled with one word; braces inside the word stay what they are."""
        return self.template.replace("{}", word.replace("_", " "))

    def subset(self, labels: Sequence[int]) -> ClassSet:
        """The classes of `labels`, in that order."""
        return replace(self, names=tuple(self.names[label] for label in labels))


class Batch(NamedTuple):
    """One batch of a loader: images [B, 3, H, W], labels [B], positions in the image list [B]."""

    images: Tensor
    labels: Tensor
    indices: Tensor


class Outputs(NamedTuple):
    """What every tuner returns: logits [B, C], unit features of images [B, D] and texts [C, D]."""

    logits: Tensor
    image_features: Tensor
    text_features: Tensor


class Outcomes(NamedTuple):
    """What a metric sees: one value per sample, all [N]; None where the input could not provide it.

    `log_likelihood` is log p(label) in nats, `brier` the sum over classes of (p - one-hot)^2,
    `proximity` in (0, 1].
    """

    confidence: Tensor
    correct: Tensor
    predicted: Tensor | None = None
    labels: Tensor | None = None
    log_likelihood: Tensor | None = None
    brier: Tensor | None = None
    proximity: Tensor | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Everything calibration sees of a model: logits, labels, features, and its zero-shot twin.

    Either `logits` are stored, or `image_features`, `text_features` and `logit_scale` are given and
    logits exist only in blocks: `logit_scale * image_features @ text_features.T`, each row times
    `row_scale` and `predicted_scale[predicted]`.

    NumPy arrays are taken as tensors of the same memory where that is possible.

    Args:
        logits: [N, C] floating point, already multiplied by the model's logit scale.
        labels: [N] integers in 0..C-1; None for unlabelled data.
        image_features: [N, D], unit norm.
        text_features: [C, D], unit norm.
        logit_scale: the factor itself (about 100 for released CLIPs), not its logarithm.
        class_names: C names.
        zero_shot: the untuned model on the same images and classes.
        row_scale: [N] recorded factors of rows; only without stored logits.
        predicted_scale: [C] recorded factors by predicted class; only without stored logits.

    Raises:
        ValueError: shapes disagree, labels are out of range, values are not finite, or neither form
            is complete.
    """

    logits: Tensor | None = None
    labels: Tensor | None = None
    image_features: Tensor | None = None
    text_features: Tensor | None = None
    logit_scale: float | None = None
    class_names: tuple[str, ...] | None = None
    zero_shot: Predictions | None = None
    row_scale: Tensor | None = None
    predicted_scale: Tensor | None = None

    def __post_init__(self) -> None:
        for name in _TENSORS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, Tensor):
                object.__setattr__(self, name, as_tensor(f"Predictions: {name}", value))
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.logits is None:
            self._check_features()
        else:
            self._check_logits(self.logits)
        n, c = len(self), self.n_classes
        expected = {"image_features": n, "text_features": c, "row_scale": n, "predicted_scale": c}
        for name, rows in expected.items():
            value = getattr(self, name)
            if value is not None and len(value) != rows:
                raise ValueError(
                    f"Predictions: {name} must have {rows} rows, got {tuple(value.shape)}"
                )
        if self.class_names is not None and len(self.class_names) != c:
            raise ValueError(
                f"Predictions: class_names must have {c} names, got {len(self.class_names)}"
            )
        if self.zero_shot is not None and (len(self.zero_shot), self.zero_shot.n_classes) != (n, c):
            raise ValueError(
                f"Predictions: zero_shot must be of the same {n} images and {c} classes, "
                f"got {len(self.zero_shot)} and {self.zero_shot.n_classes}"
            )
        if self.labels is not None:
            object.__setattr__(self, "labels", check_labels("Predictions", self.labels, n, c))

    def _check_logits(self, logits: Tensor) -> None:
        if logits.ndim != 2 or logits.shape[1] < 1 or not logits.is_floating_point():
            raise ValueError(
                "Predictions: logits must be floating point [N, C] with C >= 1, "
                f"got {logits.dtype} {tuple(logits.shape)}"
            )
        if self.row_scale is not None or self.predicted_scale is not None:
            raise ValueError(
                "Predictions: row_scale and predicted_scale belong to predictions without stored "
                "logits"
            )
        check_finite("Predictions: logits", logits)

    def _check_features(self) -> None:
        image, text = self.image_features, self.text_features
        if image is None or text is None or self.logit_scale is None:
            raise ValueError(
                "Predictions: give logits, or image_features, text_features and logit_scale"
            )
        if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1] or len(text) < 1:
            raise ValueError(
                "Predictions: image_features [N, D] and text_features [C, D] must agree in D, "
                f"got {tuple(image.shape)} and {tuple(text.shape)}"
            )
        check_finite("Predictions: image_features", image)
        check_finite("Predictions: text_features", text)

    def __repr__(self) -> str:
        # shapes and what there is, not a screen of numbers
        known = [each.name for each in fields(self) if getattr(self, each.name) is not None]
        return f"Predictions({len(self):,} x {self.n_classes:,}: {', '.join(known)})"

    def __len__(self) -> int:
        rows = self.logits if self.logits is not None else self.image_features
        assert rows is not None
        return len(rows)

    @property
    def n_classes(self) -> int:
        """C, the number of classes."""
        if self.logits is not None:
            return self.logits.shape[1]
        assert self.text_features is not None
        return len(self.text_features)

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[tuple[slice, Tensor]]:
        """Logits in blocks of rows: (rows, [rows, C] floating point), about `max_bytes` each."""
        size = max(1, max_bytes // (4 * self.n_classes))
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self._block(rows)

    def _block(self, rows: slice) -> Tensor:
        if self.logits is not None:
            return self.logits[rows]
        assert (
            self.image_features is not None
            and self.text_features is not None
            and self.logit_scale is not None
        )
        block = self.image_features[rows].float() @ self.text_features.float().T * self.logit_scale
        if self.predicted_scale is None and self.row_scale is None:
            return block
        factor = torch.ones(len(block), device=block.device)
        if self.predicted_scale is not None:
            factor = factor * self.predicted_scale.to(factor)[block.argmax(-1)]
        if self.row_scale is not None:
            factor = factor * self.row_scale[rows].to(factor)
        return _scale_rows(block, factor)

    def with_logits(self, logits: Tensor) -> Predictions:
        """The same predictions with other stored logits [N, C]."""
        return replace(self, logits=logits, row_scale=None, predicted_scale=None)

    def scaled(
        self, *, row: Tensor | float | None = None, predicted: Tensor | None = None
    ) -> Predictions:
        """Multiply every row of logits by `row` and by `predicted` at its predicted class.

        Stored logits are multiplied now, half precision as float32; otherwise the factors are
        recorded for the fused operations. No predicted class changes, not even by rounding.

        Args:
            row: one factor, or [N]; positive.
            predicted: [C] positive.

        Raises:
            ValueError: a factor is not positive and finite, or has another shape.
        """
        rows = None if row is None else self._factors("row", row, len(self))
        classes = (
            None if predicted is None else self._factors("predicted", predicted, self.n_classes)
        )
        if self.logits is None:
            return self._record(rows, classes)
        factor = torch.ones(len(self), dtype=_wide(self.logits.dtype), device=self.logits.device)
        if rows is not None:
            factor = factor * rows.to(factor)
        if classes is not None:
            factor = factor * classes.to(factor)[self.logits.argmax(-1)]
        return self.with_logits(_scale_rows(self.logits, factor))

    def _record(self, rows: Tensor | None, classes: Tensor | None) -> Predictions:
        if rows is not None and self.row_scale is not None:
            rows = rows * self.row_scale.to(rows)
        if classes is not None and self.predicted_scale is not None:
            classes = classes * self.predicted_scale.to(classes)
        return replace(
            self,
            row_scale=self.row_scale if rows is None else rows.float(),
            predicted_scale=self.predicted_scale if classes is None else classes.float(),
        )

    def _factors(self, name: str, value: Tensor | float, size: int) -> Tensor:
        like = self.logits if self.logits is not None else self.image_features
        assert like is not None
        # a tensor keeps its dtype; a number takes the precision of the logits
        dtype = _wide(like.dtype) if isinstance(value, (int, float)) else value.dtype
        factor = torch.as_tensor(value, dtype=dtype, device=like.device).detach()
        if factor.shape not in ((), (size,)):
            raise ValueError(
                f"Predictions.scaled: {name} factors must be one number or [{size}], "
                f"got shape {tuple(factor.shape)}"
            )
        if not bool((torch.isfinite(factor) & (factor > 0)).all()):
            raise ValueError(f"Predictions.scaled: {name} factors must be positive and finite")
        return factor.expand(size).contiguous()

    def select(self, rows: Tensor) -> Predictions:
        """The samples `rows` (indices or a mask [N]), with their zero-shot twins."""
        per_sample = ("logits", "labels", "image_features", "row_scale")
        chosen = {
            name: value[rows] for name in per_sample if (value := getattr(self, name)) is not None
        }
        zero_shot = None if self.zero_shot is None else self.zero_shot.select(rows)
        return replace(self, **chosen, zero_shot=zero_shot)

    def save(self, path: str | Path) -> None:
        """Write everything, zero-shot twin included, to one safetensors file."""
        from safetensors.torch import save

        tensors, about = self._flatten("")
        # cloned, because safetensors refuses names that share memory
        content = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        write_atomic(path, save(content, {"vlcal": json.dumps(about)}))

    def _flatten(self, prefix: str) -> tuple[dict[str, Tensor], dict]:
        tensors = {
            prefix + name: value for name in _TENSORS if (value := getattr(self, name)) is not None
        }
        about: dict = {
            "format": 1,
            "logit_scale": self.logit_scale,
            "class_names": self.class_names,
        }
        if self.zero_shot is not None:
            more, about["zero_shot"] = self.zero_shot._flatten(prefix + "zero_shot.")
            tensors |= more
        return tensors, about

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        """Read what `save` wrote; a truncated or foreign file is a ValueError."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"Predictions.load: no such file: {path}")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("vlcal", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(
                f"Predictions.load: {path} is not a readable safetensors file: {error}"
            ) from error
        if not isinstance(about, dict) or about.get("format") != 1:
            raise ValueError(
                f"Predictions.load: {path} was not written by vlcal (format 1 expected)"
            )
        return cls._unflatten(tensors, about, "")

    @classmethod
    def _unflatten(cls, tensors: dict[str, Tensor], about: dict, prefix: str) -> Predictions:
        twin = about.get("zero_shot")
        return cls(
            **{name: tensors[prefix + name] for name in _TENSORS if prefix + name in tensors},
            logit_scale=about["logit_scale"],
            class_names=None if about["class_names"] is None else tuple(about["class_names"]),
            zero_shot=None
            if twin is None
            else cls._unflatten(tensors, twin, prefix + "zero_shot."),
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _scale_rows(logits: Tensor, factor: Tensor) -> Tensor:
    """Rows times positive factors [N], in float32 or wider, every first argmax where it was."""
    before = logits.argmax(-1)
    scaled = logits.to(_wide(logits.dtype)) * factor[:, None]
    # a product may round two neighboring floats to one and so let an earlier class win
    moved = (scaled.argmax(-1) != before).nonzero()[:, 0]
    top = before[moved]
    above = torch.full((), torch.inf, dtype=scaled.dtype, device=scaled.device)
    scaled[moved, top] = torch.nextafter(scaled[moved, top], above)
    return scaled


def check_labels(who: str, labels: Tensor, n: int, n_classes: int | None) -> Tensor:
    """`labels` as int64 [n] in 0..n_classes-1, or a ValueError naming the first row that is not."""
    if labels.shape != (n,):
        raise ValueError(
            f"{who}: labels must be [N] = [{n}] class indices, got shape {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"{who}: labels must be integers, got {labels.dtype}; whole numbers become such by "
            "labels.astype('int64')"
        )
    labels = labels.long()
    if n_classes is not None and n:
        bad = (labels < 0) | (labels >= n_classes)
        if bool(bad.any()):
            row = int(bad.int().argmax())
            raise ValueError(
                f"{who}: labels must be in 0..{n_classes - 1}, "
                f"got {int(labels[row])} in row {row} ({int(bad.sum())} in all)"
            )
    return labels


def check_finite(who: str, values: Tensor) -> None:
    """Raise a ValueError with count and first row if `values` holds NaN or an infinity."""
    # a mask of all values is only made for the message
    if _native.all_finite(values):
        return
    bad = ~torch.isfinite(values)
    rows = bad.reshape(len(values), -1).any(-1)
    raise ValueError(
        f"{who} must be finite, got {int(bad.sum())} NaN or infinite values in "
        f"{int(rows.sum())} rows, the first in row {int(rows.int().argmax())} "
        "(an overflow of float16?)"
    )

"""The nouns everything exchanges: ClassSet, Batch, Outputs, Predictions, Outcomes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_BYTES = 64 << 20
_TENSORS = ("logits", "labels", "image_features", "text_features", "row_scale", "predicted_scale")


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
                    f"ClassSet: every name must be a non-empty string, got {name!r} for label {label}"
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
    """One batch of a loader: images [B, 3, H, W], labels [B], and the position of each image in its list [B]."""

    images: Tensor
    labels: Tensor
    indices: Tensor


class Outputs(NamedTuple):
    """What every tuner returns: logits [B, C], unit image features [B, D], unit text features [C, D]."""

    logits: Tensor
    image_features: Tensor
    text_features: Tensor


class Outcomes(NamedTuple):
    """What a metric sees: one value per sample, all [N]; a field is None when the input could not provide it.

    `log_likelihood` is log p(label) in nats, `brier` the sum over classes of (p - one-hot)^2, `proximity` in (0, 1].
    """

    confidence: Tensor
    correct: Tensor
    predicted: Tensor | None = None
    labels: Tensor | None = None
    log_likelihood: Tensor | None = None
    brier: Tensor | None = None
    proximity: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Predictions:
    """Everything calibration sees of a model: logits, labels, features, and the same of the zero-shot model.

    Either `logits` are stored, or `image_features`, `text_features` and `logit_scale` are given and logits exist only in
    blocks: `logit_scale * image_features @ text_features.T`, each row times `row_scale` and `predicted_scale[predicted]`.

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
        ValueError: shapes disagree, labels are out of range, logits are not finite, or neither form is complete.
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
        if self.labels is not None:
            object.__setattr__(self, "labels", check_labels("Predictions", self.labels, n, c))

    def _check_logits(self, logits: Tensor) -> None:
        if logits.ndim != 2 or logits.shape[1] < 1 or not logits.is_floating_point():
            raise ValueError(
                f"Predictions: logits must be floating point [N, C] with C >= 1, got {logits.dtype} {tuple(logits.shape)}"
            )
        if self.row_scale is not None or self.predicted_scale is not None:
            raise ValueError(
                "Predictions: row_scale and predicted_scale belong to predictions without stored logits"
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
        """Logits in blocks of rows: (rows, [rows, C] floating point), at most about `max_bytes` each."""
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
        if self.predicted_scale is not None:
            block = block * self.predicted_scale[block.argmax(-1), None]
        if self.row_scale is not None:
            block = block * self.row_scale[rows, None]
        return block

    def with_logits(self, logits: Tensor) -> Predictions:
        """The same predictions with other stored logits [N, C]."""
        return replace(self, logits=logits, row_scale=None, predicted_scale=None)

    def scaled(
        self, *, row: Tensor | float | None = None, predicted: Tensor | None = None
    ) -> Predictions:
        """Multiply the logits of every row by `row` ([N] or one factor) and by `predicted` [C] at its predicted class.

        Stored logits are multiplied now; otherwise the factors are recorded for the fused operations. All factors must be
        positive, so that no predicted class changes.
        """
        rows = None if row is None else torch.as_tensor(row, dtype=torch.float32).expand(len(self))
        for name, factor in (("row", rows), ("predicted", predicted)):
            if factor is not None and not bool((torch.isfinite(factor) & (factor > 0)).all()):
                raise ValueError(f"Predictions.scaled: {name} factors must be positive and finite")
        if self.logits is not None:
            factor = torch.ones(len(self), dtype=self.logits.dtype, device=self.logits.device)
            if rows is not None:
                factor = factor * rows.to(factor)
            if predicted is not None:
                factor = factor * predicted.to(factor)[self.logits.argmax(-1)]
            return self.with_logits(self.logits * factor[:, None])
        if rows is not None and self.row_scale is not None:
            rows = rows * self.row_scale
        if predicted is not None and self.predicted_scale is not None:
            predicted = predicted * self.predicted_scale
        return replace(
            self,
            row_scale=self.row_scale if rows is None else rows.contiguous(),
            predicted_scale=self.predicted_scale if predicted is None else predicted.float(),
        )

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
        from safetensors.torch import save_file

        tensors, about = self._flatten("")
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            partial,
            {"vlcal": json.dumps(about)},
        )
        partial.replace(target)

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


def check_labels(who: str, labels: Tensor, n: int, n_classes: int | None) -> Tensor:
    """`labels` as int64 [n] in 0..n_classes-1, or a ValueError that names the first row that is not."""
    if labels.shape != (n,):
        raise ValueError(
            f"{who}: labels must be [N] = [{n}] class indices, got shape {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{who}: labels must be integers, got {labels.dtype}")
    labels = labels.long()
    if n_classes is not None and n:
        bad = (labels < 0) | (labels >= n_classes)
        if bool(bad.any()):
            row = int(bad.int().argmax())
            raise ValueError(
                f"{who}: labels must be in 0..{n_classes - 1}, got {int(labels[row])} in row {row} ({int(bad.sum())} in all)"
            )
    return labels


def check_finite(who: str, values: Tensor) -> None:
    """Raise a ValueError with count and first row if `values` holds NaN or an infinity."""
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        rows = bad.reshape(len(values), -1).any(-1)
        raise ValueError(
            f"{who} must be finite, got {int(bad.sum())} NaN or infinite values in {int(rows.sum())} rows, "
            f"the first in row {int(rows.int().argmax())} (an overflow of float16?)"
        )

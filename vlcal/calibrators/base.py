"""The protocol of calibrators, chains of them, and the guard against fitting on the test data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

from vlcal._files import sha256_of
from vlcal.ops import logit_statistics
from vlcal.types import Predictions, VlcalWarning

if TYPE_CHECKING:
    from typing_extensions import Self


class NotFitted(ValueError):
    """`transform` was called before `fit`."""


class FittedOnTest(VlcalWarning):
    """The predictions to calibrate are those the calibrator was fitted on.

    Only calibrators that read labels warn: without labels nothing of the answers can leak into the
    calibrated predictions, and classes are often compared with themselves on purpose.
    """


class NewClasses(ValueError):
    """The predictions have other classes than those a one-versus-rest calibrator was fitted on."""


class Calibrator(Protocol):
    """A map from predictions to predictions, fitted on validation predictions.

    `softmax(logits)` of the result is the calibrated belief. Parameters are constructor arguments,
    what `fit` learns ends in an underscore and is only a tensor, a number, a string, a tuple of
    strings or None, so that it is saved without pickle. `transform` changes nothing.

    Attributes:
        name: how the calibrator is called in tables and on the command line.
        keeps_argmax: no predicted class changes, ties included.
        handles_new_classes: may be applied to other classes than those of `fit`.
        needs: fields of `Predictions` that `fit` reads; one that learns nothing only checks them,
            and its `transform` works without `fit`.
    """

    name: ClassVar[str]
    keeps_argmax: ClassVar[bool]
    handles_new_classes: ClassVar[bool]
    needs: ClassVar[tuple[str, ...]]

    def fit(self, val: Predictions) -> Self:
        """Learn from validation predictions; the same object, fitted."""
        ...

    def transform(self, test: Predictions) -> Predictions:
        """Calibrated predictions; `test` stays as it is."""
        ...

    def predict_proba(self, test: Predictions) -> Tensor:
        """Calibrated probabilities [N, C], as the method gives them; `test` stays as it is."""
        ...


class RowScaling:
    """Calibrators that only multiply rows of logits by positive factors; they define `scale`.

    Predictions without stored logits get the factors recorded, so nothing N x C is made before the
    fused operations read them. No predicted class changes.
    """

    name: ClassVar[str]
    fitted_on_: str | tuple[str, ...] | None = None

    def scale(self, test: Predictions) -> tuple[Tensor | None, Tensor | None]:
        """Factors of rows, [N] or one for all, and factors by predicted class [C]; None is 1."""
        raise NotImplementedError

    def transform(self, test: Predictions) -> Predictions:
        """The same predictions, every row of logits times its factor."""
        row, predicted = self.scale(test)
        warn_if_seen(self.name, self.fitted_on_, test)
        return test.scaled(row=row, predicted=predicted)

    def predict_proba(self, test: Predictions) -> Tensor:
        """Softmax of the scaled logits, [N, C]; `transform` is the way that does not make them."""
        return probabilities(self.transform(test))


def probabilities(predictions: Predictions) -> Tensor:
    """Softmax of the logits in blocks of rows: [N, C] float32, float64 for float64 logits.

    Logits closer than the rounding of a probability may tie; those of `predictions` decide.
    """
    blocks = [
        block.to(torch.promote_types(block.dtype, torch.float32)).softmax(-1)
        for _, block in predictions.blocks()
    ]
    return torch.cat(blocks) if blocks else torch.zeros(0, predictions.n_classes)


def plain_features(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Features whose products, times `logit_scale`, are the logits: recorded factors included.

    Only for predictions without stored logits. The factors go into the rows of `image_features`;
    factors by predicted class cost one pass for the predictions.
    """
    image, text = predictions.image_features, predictions.text_features
    assert image is not None and text is not None
    factor = predictions.row_scale
    if predictions.predicted_scale is not None:
        predicted = logit_statistics(image, text, 1.0).argmax
        by_class = predictions.predicted_scale[predicted]
        factor = by_class if factor is None else factor * by_class
    return (image if factor is None else image.float() * factor.float()[:, None]), text


@dataclass
class Chain:
    """Calibrators one after the other, each fitted on what the ones before it made of validation.

    Args:
        steps: calibrators in order; `fit` fits these very objects.
    """

    name: ClassVar[str] = "chain"

    steps: Sequence[Calibrator | Chain] = field(default=())

    @property
    def keeps_argmax(self) -> bool:
        """Whether every step does."""
        return all(step.keeps_argmax for step in self.steps)

    @property
    def handles_new_classes(self) -> bool:
        """Whether every step does."""
        return all(step.handles_new_classes for step in self.steps)

    @property
    def needs(self) -> tuple[str, ...]:
        """What any step needs."""
        return tuple(dict.fromkeys(need for step in self.steps for need in step.needs))

    def fit(self, val: Predictions) -> Self:
        """Fit every step on the validation predictions as the steps before it left them."""
        for step in self.steps:
            step.fit(val)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FittedOnTest)  # on purpose here
                val = step.transform(val)
        return self

    def transform(self, test: Predictions) -> Predictions:
        """Apply the steps in order."""
        for step in self.steps:
            test = step.transform(test)
        return test

    def predict_proba(self, test: Predictions) -> Tensor:
        """Probabilities [N, C] of the last step on what those before it made."""
        if not self.steps:
            return probabilities(test)
        return self.steps[-1].predict_proba(Chain(self.steps[:-1]).transform(test))


def need(who: str, predictions: Predictions, *fields: str) -> None:
    """Raise a ValueError that names the first of these fields the predictions lack."""
    for name in fields:
        if getattr(predictions, name) is None:
            raise ValueError(f"{who}: needs predictions with {name}, got none")


def refuse_new_classes(
    who: str, class_names: tuple[str, ...] | None, n_classes: int, test: Predictions
) -> None:
    """Raise `NewClasses` unless `test` has the classes of `fit`, in their order.

    Args:
        who: name of the calibrator, for the message.
        class_names: names of the classes of `fit`; None if they had none.
        n_classes: how many there were.
        test: predictions to calibrate; without names on both sides only the number can be compared.
    """
    why = ""
    if class_names is not None and test.class_names is not None:
        new = [name for name in test.class_names if name not in set(class_names)]
        if new:
            why = f"{new[0]!r} is not one of them ({len(new)} new classes in all)"
        elif test.class_names != class_names:
            why = "these predictions have a part of them, or another order"
    elif test.n_classes != n_classes:
        why = f"these predictions have {test.n_classes}"
    if why:
        raise NewClasses(
            f"{who}: learned a map for each of the {n_classes} classes of fit, and {why}; "
            "ts, dac, cac, sals, mir and den handle new classes, hb and ir do with mode='top_label'"
        )


def content_hash(predictions: Predictions, rows: int = 64) -> str:
    """A hash of the labels and of up to `rows` rows of logits or image features, spread evenly."""
    values = predictions.logits if predictions.logits is not None else predictions.image_features
    assert values is not None
    rows = min(rows, len(values))
    chosen = torch.arange(rows, device=values.device) * (len(values) - 1) // max(rows - 1, 1)
    parts = [_bytes(values[chosen])]
    if predictions.labels is not None:
        parts.append(_bytes(predictions.labels))
    return sha256_of(*parts)


def _bytes(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def warn_if_seen(who: str, fitted_on: str | tuple[str, ...] | None, test: Predictions) -> None:
    """Warn loudly if `test` has the content hash of the data of `fit`, or of a part of them."""
    parts = (fitted_on,) if isinstance(fitted_on, str) else fitted_on
    if parts and content_hash(test) in parts:
        warnings.warn(
            f"{who}: fitted on the very predictions it is applied to, so every number measured on "
            "them is too good; fit on a validation split",
            FittedOnTest,
            stacklevel=3,
        )

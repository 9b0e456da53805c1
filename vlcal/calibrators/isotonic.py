"""Isotonic regression: the best non-decreasing fit of how often a probability is right.

Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates",
KDD 2002; one function for all classes: Zhang et al., "Mix-n-Match: Ensemble and compositional
methods for uncertainty calibration in deep learning", ICML 2020.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from vlcal.calibrators.base import NotFitted, refuse_new_classes
from vlcal.calibrators.knots import (
    Answers,
    Knots,
    check_knots,
    fit_knots,
    flat_below,
    interpolate,
    lines_of,
)
from vlcal.calibrators.probabilities import (
    ProbabilityMap,
    ProbabilityMapping,
    check_choice,
    check_labeled,
    normalized,
    probability_blocks,
    with_top,
)
from vlcal.types import Predictions

if TYPE_CHECKING:
    from typing_extensions import Self

SMALLEST_STEP = 1e-9  # of the published code: keeps the order of equal values


@dataclass
class IsotonicRegression(ProbabilityMap):
    """Replace each probability by a non-decreasing function of it, fitted by least squares.

    In mode "one_versus_rest" every class has its own function and rows are then divided by their
    sum. In mode "top_label" one function maps the confidence of the predicted class, whichever that
    is, and the other probabilities are scaled to sum to the rest; that needs no class to be known,
    so new classes are handled. The predicted class may change in both.

    The fit is exact, with straight lines between the ends of its constant pieces and constant
    outside, as in scikit-learn. `fit` reads the predictions twice in blocks and keeps only the
    probabilities above the smallest one of a right answer of their class.

    Args:
        mode: "one_versus_rest" or "top_label".
        absent: what a class without validation samples gives: "zero", as netcal, or "keep" for
            the probability as it was.
        ties: probabilities closer than this count as equal to the lowest of them; 0 means equal
            ones only. scikit-learn has 1e-15 for float64 inputs (1e-6 for float32 ones), which
            matters where probabilities are that small; `fit` then keeps and sorts all of them.
    """

    name: ClassVar[str] = "ir"
    needs: ClassVar[tuple[str, ...]] = ("labels",)

    mode: Literal["one_versus_rest", "top_label"] = "one_versus_rest"
    absent: Literal["zero", "keep"] = "zero"
    ties: float = 0.0

    x_: Tensor | None = field(default=None, init=False, repr=False)
    y_: Tensor | None = field(default=None, init=False, repr=False)
    offsets_: Tensor | None = field(default=None, init=False, repr=False)
    class_names_: tuple[str, ...] | None = field(default=None, init=False, repr=False)
    fitted_on_: tuple[str, ...] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice(self.name, "mode", self.mode, ("one_versus_rest", "top_label"))
        check_choice(self.name, "absent", self.absent, ("zero", "keep"))
        _check_ties(self.name, self.ties)

    @property
    def handles_new_classes(self) -> bool:
        """Whether only the confidence is calibrated."""
        return self.mode == "top_label"

    def fit(self, val: Predictions) -> Self:
        """Find the knots of every function on labeled validation predictions.

        Raises:
            ValueError: there are no labels.
            NoSamplesError: there are no samples.
        """
        seen = check_labeled(self.name, val)
        groups = 1 if self.mode == "top_label" else val.n_classes
        knots = fit_knots(lambda: self._answers(val), groups, ties=self.ties)
        self.x_, self.y_, self.offsets_ = knots
        self.class_names_, self.fitted_on_ = val.class_names, (seen,)
        return self

    def mapping(self, test: Predictions) -> ProbabilityMapping:
        """Evaluate the function of each class, or of the confidence."""
        knots = _knots_of(self)
        if not self.handles_new_classes:
            refuse_new_classes(self.name, self.class_names_, len(knots.offsets) - 1, test)

        def one_versus_rest(probs: Tensor, rows: slice) -> Tensor:
            return normalized(_per_class(knots, probs, self.absent == "keep"))

        def top_label(probs: Tensor, rows: slice) -> Tensor:
            predicted = probs.argmax(-1, keepdim=True)
            found = _per_class(knots, probs.gather(1, predicted), keep=False)
            return with_top(probs, predicted[:, 0], found[:, 0])

        return top_label if self.mode == "top_label" else one_versus_rest

    def check_loaded(self) -> None:
        """Refuse learned values that do not fit together."""
        names = 1 if self.mode == "top_label" else _count(self.class_names_)
        check_knots(self.name, self.x_, self.y_, self.offsets_, names)

    def _answers(self, val: Predictions) -> Answers:
        for probs, labels in _labeled_blocks(val):
            if self.mode == "top_label":
                predicted = probs.argmax(-1, keepdim=True)
                yield probs.gather(1, predicted), (predicted[:, 0] == labels).long() - 1
            else:
                yield probs, labels


@dataclass
class MultiIsotonic(ProbabilityMap):
    """Replace every probability by one non-decreasing function of it, the same for all classes.

    The function is fitted on all N x C probabilities and whether each is that of the label; 1e-9
    times the old probability is added, so that the order inside a row stays. No class has to be
    known, so new classes are handled. The values of `predict_proba` (float64) keep every order, up
    to ties by rounding, and do not sum to one; softmax of `transform` is these values divided by
    their sum, and no predicted class changes.

    `fit` keeps and sorts the probabilities that are not below the smallest one of a label: 8 bytes
    for up to N x C of them.

    Args:
        softmax: "double" applies softmax to the probabilities once more before everything else, as
            the published code does by handing probabilities to a function that expects logits.
        ties: as in `IsotonicRegression`.
    """

    name: ClassVar[str] = "mir"
    handles_new_classes: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("labels",)

    softmax: Literal["single", "double"] = "single"
    ties: float = 0.0

    x_: Tensor | None = field(default=None, init=False, repr=False)
    y_: Tensor | None = field(default=None, init=False, repr=False)
    offsets_: Tensor | None = field(default=None, init=False, repr=False)
    fitted_on_: tuple[str, ...] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice(self.name, "softmax", self.softmax, ("single", "double"))
        _check_ties(self.name, self.ties)

    @property
    def keeps_argmax(self) -> bool:
        """Order inside rows stays."""
        return True

    def fit(self, val: Predictions) -> Self:
        """Find the knots of the function on labeled validation predictions.

        Raises:
            ValueError: there are no labels.
            NoSamplesError: there are no samples.
        """
        seen = check_labeled(self.name, val)
        knots = fit_knots(lambda: self._answers(val), val.n_classes, pooled=True, ties=self.ties)
        self.x_, self.y_, self.offsets_ = knots
        self.fitted_on_ = (seen,)
        return self

    def mapping(self, test: Predictions) -> ProbabilityMapping:
        """Evaluate the function at every probability."""
        knots = _knots_of(self)

        def everywhere(probs: Tensor, rows: slice) -> Tensor:
            probs = self._input(probs)
            found = interpolate(lines_of(knots, probs.device), probs.flatten(), None)
            return found.view_as(probs).add_(probs, alpha=SMALLEST_STEP)

        return everywhere

    def check_loaded(self) -> None:
        """Refuse learned values that do not fit together."""
        check_knots(self.name, self.x_, self.y_, self.offsets_, 1)

    def _input(self, probs: Tensor) -> Tensor:
        return probs.softmax(-1) if self.softmax == "double" else probs

    def _answers(self, val: Predictions) -> Answers:
        for probs, labels in _labeled_blocks(val):
            yield self._input(probs), labels


def _labeled_blocks(val: Predictions) -> Answers:
    assert val.labels is not None
    for rows, _, probs in probability_blocks(val):
        yield probs, val.labels[rows].to(probs.device)


def _per_class(knots: Knots, probs: Tensor, keep: bool) -> Tensor:
    """The function of each column at its probabilities [R, G]; 0 or unchanged without knots."""
    lines = lines_of(knots, probs.device)
    value, until = flat_below(lines.knots)
    found = value.to(probs).repeat(len(probs), 1)
    flat = (probs > _not_above(until, probs.dtype)).flatten().nonzero()[:, 0]
    moved = interpolate(lines, probs.flatten()[flat], flat % probs.shape[1])
    found.view(-1)[flat] = moved.to(found)
    if keep:
        offsets = lines.knots.offsets
        found = torch.where(offsets[1:] > offsets[:-1], found, probs)
    return found


def _not_above(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest values of `dtype` that are not above these."""
    near = values.to(dtype)
    below = torch.nextafter(near, torch.full_like(near, -torch.inf))
    return torch.where(near.double() > values, below, near)


def _knots_of(fitted: IsotonicRegression | MultiIsotonic) -> Knots:
    if fitted.x_ is None or fitted.y_ is None or fitted.offsets_ is None:
        raise NotFitted(f"{fitted.name}: fit comes before transform")
    return Knots(fitted.x_, fitted.y_, fitted.offsets_)


def _count(names: tuple[str, ...] | None) -> int | None:
    return None if names is None else len(names)


def _check_ties(who: str, ties: float) -> None:
    if not 0 <= ties < 1:
        raise ValueError(f"{who}: ties must be in 0..1, got {ties}")

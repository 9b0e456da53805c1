"""Calibration errors under the names and signatures of torchmetrics, with its numbers.

What is reproduced (torchmetrics 1.9): bins [lo, hi) between `torch.linspace(0, 1, n_bins + 1)` in
float32 and one more bin for a confidence of exactly 1; `preds` of a call are taken as logits if one
value lies outside 0..1, and as probabilities otherwise.

What differs: the state is a table of integers instead of every confidence, so that memory does not
grow and every split into batches and processes gives the same bits; sums are exact, so that values
agree to the rounding of float32 sums, and counts do not stop at 2^24 samples. NaN and labels out of
range are refused (`validate_args=False` counts such labels as wrong, as theirs), and without
samples there is no value where theirs is 0 or NaN.

`vlcal.evaluate` and `vlcal.metrics.objects` differ by default: bins (lo, hi] between the edges of
`numpy.linspace` in float64, 1 in the last bin, and no guess about `preds`. Under the convention
"torchmetrics" their numbers are those of this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from vlcal.metrics.objects.additive import AdditiveMetric
from vlcal.ops import BinStatistics, bin_statistics
from vlcal.types import NoSamplesError

__all__ = [
    "BinaryCalibrationError",
    "CalibrationError",
    "MulticlassCalibrationError",
    "binary_calibration_error",
    "calibration_error",
    "multiclass_calibration_error",
]

Norm = Literal["l1", "l2", "max"]


class _CalibrationError(AdditiveMetric):
    """What the two tasks share: the table, the norms, one dtype."""

    table: Tensor

    def __init__(
        self,
        task: object,
        n_bins: int,
        norm: Norm,
        ignore_index: int | None,
        validate_args: bool,
        options: dict[str, Any],
    ) -> None:
        super().__init__((task, n_bins, ignore_index), **options)
        if validate_args:
            _check_options(type(self).__name__, n_bins, norm, ignore_index)
        self.n_bins, self.norm, self.ignore_index = n_bins, norm, ignore_index
        self.validate_args = validate_args
        self._add_sums("table", 3, n_bins + 1)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch; raises as the function of the same name."""
        self._add(self._batch(preds, target))

    def _table(self, confidence: Tensor, correct: Tensor) -> dict[str, Tensor]:
        bins = _bins(type(self).__name__, confidence, correct, self.n_bins)
        return self._empty() | {"table": bins.table}

    def _n(self, states: Mapping[str, Tensor]) -> int:
        return int(states["table"][0].sum())

    def _value(self, states: Mapping[str, Tensor]) -> float:
        return _NORMS[self.norm](BinStatistics(states["table"].cpu()))

    def _tensor(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=self.table.device)


class MulticlassCalibrationError(_CalibrationError):
    """`torchmetrics.classification.MulticlassCalibrationError` in O(n_bins) memory.

    What it reproduces and where it differs is said at the top of the file.

    Args:
        num_classes: C >= 2.
        n_bins: bins of equal width; one more holds the confidence 1.
        norm: "l1" for ECE, "l2" for RMSCE, "max" for MCE.
        ignore_index: label of samples that do not count.
        validate_args: check arguments and inputs.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        n_bins: int = 15,
        norm: Norm = "l1",
        ignore_index: int | None = None,
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        task = ("multiclass", num_classes)
        super().__init__(task, n_bins, norm, ignore_index, validate_args, kwargs)
        if validate_args and (not isinstance(num_classes, int) or num_classes < 2):
            self._refuse(f"num_classes must be an integer > 1, got {num_classes!r}")
        self.num_classes = num_classes

    def _batch(self, preds: Tensor, target: Tensor) -> dict[str, Tensor]:
        who = type(self).__name__
        if self.validate_args:
            _check_multiclass(who, preds, target, self.num_classes, self.ignore_index)
        return self._table(*_multiclass(preds, target, self.ignore_index))


class BinaryCalibrationError(_CalibrationError):
    """`torchmetrics.classification.BinaryCalibrationError` in O(n_bins) memory.

    The confidence is the probability of class 1 and its outcome the label, as in torchmetrics.

    Args:
        n_bins: bins of equal width; one more holds the confidence 1.
        norm: "l1" for ECE, "l2" for RMSCE, "max" for MCE.
        ignore_index: label of samples that do not count.
        validate_args: check arguments and inputs.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        n_bins: int = 15,
        norm: Norm = "l1",
        ignore_index: int | None = None,
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__("binary", n_bins, norm, ignore_index, validate_args, kwargs)

    def _batch(self, preds: Tensor, target: Tensor) -> dict[str, Tensor]:
        if self.validate_args:
            _check_binary(type(self).__name__, preds, target, self.ignore_index)
        return self._table(*_binary(preds, target, self.ignore_index))


class CalibrationError:
    """`torchmetrics.CalibrationError`: the object of the task, "binary" or "multiclass"."""

    def __new__(  # type: ignore[misc]
        cls,
        task: Literal["binary", "multiclass"],
        n_bins: int = 15,
        norm: Norm = "l1",
        num_classes: int | None = None,
        ignore_index: int | None = None,
        validate_args: bool = True,
        **kwargs: Any,
    ) -> MulticlassCalibrationError | BinaryCalibrationError:
        """The object of the task."""
        make = _of_task("CalibrationError", task, num_classes, _OBJECTS)
        return make(n_bins, norm, ignore_index, validate_args, **kwargs)


def multiclass_calibration_error(
    preds: Tensor,
    target: Tensor,
    num_classes: int,
    n_bins: int = 15,
    norm: Norm = "l1",
    ignore_index: int | None = None,
    validate_args: bool = True,
) -> Tensor:
    """`torchmetrics.functional.classification.multiclass_calibration_error`.

    Args:
        preds: [N, C, ...] logits or probabilities, guessed by range.
        target: [N, ...] integers in 0..C-1 or `ignore_index`.
        num_classes: C >= 2.
        n_bins: bins of equal width; one more holds the confidence 1.
        norm: "l1" for ECE, "l2" for RMSCE, "max" for MCE.
        ignore_index: label of samples that do not count.
        validate_args: check arguments and inputs.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: an argument is out of its range, shapes do not fit, or a value is NaN.
        RuntimeError: a label is out of range.
        NoSamplesError: nothing counts.
    """
    who = "multiclass_calibration_error"
    if validate_args:
        _check_options(who, n_bins, norm, ignore_index)
        _check_multiclass(who, preds, target, num_classes, ignore_index)
    return _measure(who, *_multiclass(preds, target, ignore_index), n_bins, norm)


def binary_calibration_error(
    preds: Tensor,
    target: Tensor,
    n_bins: int = 15,
    norm: Norm = "l1",
    ignore_index: int | None = None,
    validate_args: bool = True,
) -> Tensor:
    """`torchmetrics.functional.classification.binary_calibration_error`.

    Args:
        preds: [N, ...] logits or probabilities of class 1, guessed by range.
        target: [N, ...] integers 0, 1 or `ignore_index`.
        n_bins: bins of equal width; one more holds the confidence 1.
        norm: "l1" for ECE, "l2" for RMSCE, "max" for MCE.
        ignore_index: label of samples that do not count.
        validate_args: check arguments and inputs.

    Returns:
        A float32 scalar; raises as `multiclass_calibration_error`.
    """
    who = "binary_calibration_error"
    if validate_args:
        _check_options(who, n_bins, norm, ignore_index)
        _check_binary(who, preds, target, ignore_index)
    return _measure(who, *_binary(preds, target, ignore_index), n_bins, norm)


def calibration_error(
    preds: Tensor,
    target: Tensor,
    task: Literal["binary", "multiclass"],
    n_bins: int = 15,
    norm: Norm = "l1",
    num_classes: int | None = None,
    ignore_index: int | None = None,
    validate_args: bool = True,
) -> Tensor:
    """`torchmetrics.functional.calibration_error`: the function of the task."""
    measure = _of_task("calibration_error", task, num_classes, _FUNCTIONS)
    return measure(
        preds,
        target,
        n_bins=n_bins,
        norm=norm,
        ignore_index=ignore_index,
        validate_args=validate_args,
    )


_OBJECTS = {"binary": BinaryCalibrationError, "multiclass": MulticlassCalibrationError}
_FUNCTIONS = {"binary": binary_calibration_error, "multiclass": multiclass_calibration_error}


def _of_task(who: str, task: str, num_classes: int | None, table: Mapping[str, Any]) -> Any:
    if str(task).lower() not in table:
        raise ValueError(f"{who}: task must be 'binary' or 'multiclass', got {task!r}")
    if str(task).lower() == "binary":
        return table["binary"]
    if not isinstance(num_classes, int):
        raise ValueError(f"{who}: num_classes must be an integer, got {num_classes!r}")
    if table is _OBJECTS:
        return partial(table["multiclass"], num_classes)
    return partial(table["multiclass"], num_classes=num_classes)


def _multiclass(preds: Tensor, target: Tensor, ignored: int | None) -> tuple[Tensor, Tensor]:
    """Confidence [N] float32 and whether the prediction is right [N]."""
    preds = preds.detach().movedim(1, -1).reshape(-1, preds.shape[1])
    target = target.flatten()
    if ignored is not None:
        preds, target = preds[target != ignored], target[target != ignored]
    if not len(preds):
        return preds.new_empty(0, dtype=torch.float32), target != target
    if not _like_probabilities(preds):
        preds = preds.softmax(1)
    confidence, predicted = preds.max(1)
    return confidence.float(), predicted == target


def _binary(preds: Tensor, target: Tensor, ignored: int | None) -> tuple[Tensor, Tensor]:
    """Probability of class 1 [N] and whether the label is 1 [N]."""
    preds, target = preds.detach().flatten(), target.flatten()
    if ignored is not None:
        preds, target = preds[target != ignored], target[target != ignored]
    if len(preds) and not _like_probabilities(preds):
        preds = preds.sigmoid()
    return preds, target == 1


def _like_probabilities(preds: Tensor) -> bool:
    lowest, highest = torch.stack(preds.aminmax()).tolist()
    return lowest >= 0 and highest <= 1


def _bins(who: str, confidence: Tensor, correct: Tensor, n_bins: int) -> BinStatistics:
    if bool(confidence.isnan().any()):
        row = int(confidence.isnan().int().argmax())
        raise ValueError(
            f"{who}: preds must give a confidence, got NaN in row {row} of those that count "
            f"({int(confidence.isnan().sum())} such rows)"
        )
    inner = torch.linspace(0, 1, n_bins + 1, dtype=confidence.dtype).double()
    # the last bin is the one of exactly 1; a softmax may round to more
    edges = torch.cat([inner, inner.new_tensor([2.0])])
    return bin_statistics(confidence.clamp(max=1), correct, closed="left", edges=edges)


def _measure(who: str, confidence: Tensor, correct: Tensor, n_bins: int, norm: Norm) -> Tensor:
    bins = _bins(who, confidence, correct, n_bins)
    if bins.n == 0:
        raise NoSamplesError(f"{who}: needs at least one sample, got none")
    return torch.tensor(_NORMS[norm](bins), dtype=torch.float32, device=confidence.device)


def _root_mean_square(bins: BinStatistics) -> float:
    return float((bins.count * bins.gaps().square()).sum() / bins.n) ** 0.5


_NORMS = {"l1": BinStatistics.ece, "l2": _root_mean_square, "max": BinStatistics.mce}


def _check_options(who: str, n_bins: int, norm: str, ignore_index: int | None) -> None:
    if not isinstance(n_bins, int) or n_bins < 1:
        raise ValueError(f"{who}: n_bins must be an integer >= 1, got {n_bins!r}")
    if norm not in _NORMS:
        raise ValueError(f"{who}: norm must be one of {', '.join(_NORMS)}, got {norm!r}")
    if ignore_index is not None and not isinstance(ignore_index, int):
        raise ValueError(f"{who}: ignore_index must be None or an integer, got {ignore_index!r}")


def _check_multiclass(
    who: str, preds: Tensor, target: Tensor, n_classes: int, ignored: int | None
) -> None:
    if not isinstance(n_classes, int) or n_classes < 2:
        raise ValueError(f"{who}: num_classes must be an integer > 1, got {n_classes!r}")
    if not preds.is_floating_point() or preds.ndim != target.ndim + 1:
        raise ValueError(
            f"{who}: preds must be floating point [N, C, ...] for target [N, ...], "
            f"got {preds.dtype} {tuple(preds.shape)} and {tuple(target.shape)}"
        )
    if (preds.shape[0], preds.shape[1], *preds.shape[2:]) != (
        target.shape[0],
        n_classes,
        *target.shape[1:],
    ):
        raise ValueError(
            f"{who}: preds must be [N, C, ...] with C = {n_classes} and the other sizes of target "
            f"{tuple(target.shape)}, got {tuple(preds.shape)}"
        )
    _check_labels(who, target, n_classes, ignored)


def _check_binary(who: str, preds: Tensor, target: Tensor, ignored: int | None) -> None:
    if not preds.is_floating_point() or preds.shape != target.shape:
        raise ValueError(
            f"{who}: preds must be floating point of the shape of target {tuple(target.shape)}, "
            f"got {preds.dtype} {tuple(preds.shape)}"
        )
    _check_labels(who, target, 2, ignored)


def _check_labels(who: str, target: Tensor, n_classes: int, ignored: int | None) -> None:
    if target.is_floating_point():
        raise ValueError(f"{who}: target must be integers, got {target.dtype}")
    bad = (target < 0) | (target >= n_classes)
    if ignored is not None:
        bad &= target != ignored
    if bool(bad.any()):
        raise RuntimeError(
            f"{who}: target must be in 0..{n_classes - 1}"
            + (f" or {ignored}" if ignored is not None else "")
            + f", got {int(target[bad][0])} ({int(bad.sum())} such values)"
        )

"""Histogram binning: a probability becomes how often it was right in its bin.

Zadrozny and Elkan, "Obtaining calibrated probability estimates from decision trees and naive
Bayesian classifiers", ICML 2001; one-versus-rest for several classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from vlcal.calibrators.base import NotFitted, refuse_new_classes
from vlcal.calibrators.probabilities import (
    ProbabilityMap,
    ProbabilityMapping,
    check_choice,
    check_labeled,
    normalized,
    probability_blocks,
    with_top,
)
from vlcal.ops import bin_statistics, classwise_statistics
from vlcal.ops.binning import check_bins, check_closed, equal_edges, thresholds
from vlcal.types import Predictions

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class HistogramBinning(ProbabilityMap):
    """Replace each probability by the share of its class among validation samples in its bin.

    In mode "one_versus_rest" every class has its own bins and rows are then divided by their sum.
    In mode "top_label" one histogram maps the confidence of the predicted class, whichever that is,
    and the other probabilities are scaled to sum to the rest; that needs no class to be known, so
    new classes are handled. The predicted class may change in both.

    Bins have equal width. What is learned is two integers per class and bin, so it is the same for
    any order and split of the samples: `partial_fit` adds a batch, `merge` another calibrator.

    Args:
        n_bins: bins of 0..1.
        mode: "one_versus_rest" or "top_label".
        closed: side of a bin that belongs to it, in `fit` and `transform`; 0 is in the first and 1
            in the last bin.
        empty: what a bin without samples gives: its "midpoint", or "keep" for the probability as
            it was.
        absent: what a class without samples gives: "zero" or "keep".
        compat: "netcal" fits with bins closed on the left and looks up with bins closed on the
            right, as that library does, whatever `closed` says. Its rows without any probability
            are NaN; here they keep the uncalibrated ones.
    """

    name: ClassVar[str] = "hb"
    needs: ClassVar[tuple[str, ...]] = ("labels",)

    n_bins: int = 10
    mode: Literal["one_versus_rest", "top_label"] = "one_versus_rest"
    closed: Literal["right", "left"] = "right"
    empty: Literal["midpoint", "keep"] = "midpoint"
    absent: Literal["zero", "keep"] = "zero"
    compat: Literal["netcal"] | None = None

    table_: Tensor | None = field(default=None, init=False, repr=False)
    class_names_: tuple[str, ...] | None = field(default=None, init=False, repr=False)
    fitted_on_: tuple[str, ...] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_bins(self.name, self.n_bins)
        check_closed(self.name, self.closed)
        check_choice(self.name, "mode", self.mode, ("one_versus_rest", "top_label"))
        check_choice(self.name, "empty", self.empty, ("midpoint", "keep"))
        check_choice(self.name, "absent", self.absent, ("zero", "keep"))
        check_choice(self.name, "compat", self.compat, (None, "netcal"))

    @property
    def handles_new_classes(self) -> bool:
        """Whether only the confidence is calibrated."""
        return self.mode == "top_label"

    def fit(self, val: Predictions) -> Self:
        """Count the bins of labeled validation predictions, and forget what was counted before.

        Raises:
            ValueError: there are no labels.
            NoSamplesError: there are no samples.
        """
        seen = check_labeled(self.name, val)
        self.table_, self.class_names_ = self._count(val), val.class_names
        self.fitted_on_ = (seen,)
        return self

    def partial_fit(self, val: Predictions) -> Self:
        """Add a batch to what was counted: as if `fit` had seen all of them at once.

        Raises:
            ValueError: there are no labels or no samples.
            NewClasses: the classes are not those of the batches before.
        """
        if self.table_ is None:
            return self.fit(val)
        seen = check_labeled(self.name, val)
        self._refuse(self.table_, val)
        self.table_ = self.table_ + self._count(val)
        self.fitted_on_ = (*(self.fitted_on_ or ()), seen)
        return self

    def merge(self, other: HistogramBinning) -> Self:
        """Add what another calibrator with the same options has counted on other samples.

        Raises:
            NotFitted: one of the two has not been fitted.
            ValueError: options or classes differ.
        """
        if self.table_ is None or other.table_ is None:
            raise NotFitted(f"{self.name}: fit comes before merge, on both sides")
        mine, theirs = ((s.n_bins, s.mode, s.closed, s.compat) for s in (self, other))
        if mine != theirs or self.table_.shape != other.table_.shape:
            raise ValueError(
                f"{self.name}: only histograms over the same bins and classes can be merged, got "
                f"{mine} with {self.table_.shape[1]} classes and {theirs} with "
                f"{other.table_.shape[1]}"
            )
        if self.class_names_ != other.class_names_:
            raise ValueError(f"{self.name}: only histograms of the same class names can be merged")
        self.table_ = self.table_ + other.table_
        self.fitted_on_ = (*(self.fitted_on_ or ()), *(other.fitted_on_ or ()))
        return self

    def mapping(self, test: Predictions) -> ProbabilityMapping:
        """Look every probability up in the bins of its class."""
        if self.table_ is None:
            raise NotFitted(f"{self.name}: fit comes before transform")
        self._refuse(self.table_, test)
        values = self._values(self.table_)
        right = self.closed == "right" or self.compat == "netcal"
        top = self.mode == "top_label"

        def look_up(probs: Tensor, rows: slice) -> Tensor:
            predicted = probs.argmax(-1, keepdim=True)
            given = probs.gather(1, predicted) if top else probs
            found = _look_up(given, values.to(given), right)
            return with_top(probs, predicted[:, 0], found[:, 0]) if top else normalized(found)

        return look_up

    def check_loaded(self) -> None:
        """Refuse learned values that do not fit together."""
        table, names = cast(Any, self.table_), self.class_names_
        if table is None:
            return
        if (
            not isinstance(table, Tensor)
            or table.dtype != torch.int64
            or table.ndim != 3
            or (table.shape[0], table.shape[2]) != (2, self.n_bins)
            or table.shape[1] < 1
            or (self.mode == "top_label" and table.shape[1] != 1)
            or (self.mode != "top_label" and names is not None and len(names) != table.shape[1])
            or bool((table[1] < 0).any())
            or bool((table[1] > table[0]).any())
        ):
            raise ValueError(
                f"{self.name}: counts must be [2, classes, {self.n_bins}] integers, the second not "
                "above the first, with a name for every class"
            )

    def _refuse(self, table: Tensor, test: Predictions) -> None:
        if not self.handles_new_classes:
            refuse_new_classes(self.name, self.class_names_, table.shape[1], test)

    def _count(self, val: Predictions) -> Tensor:
        """[2, C, B] samples, and samples of the class; C = 1 for confidences."""
        assert val.labels is not None
        closed = "left" if self.compat == "netcal" else self.closed
        groups = 1 if self.mode == "top_label" else val.n_classes
        total = torch.zeros(2, groups, self.n_bins, dtype=torch.int64)
        for rows, _, probs in probability_blocks(val):
            labels = val.labels[rows].to(probs.device)
            if self.mode == "top_label":
                predicted = probs.argmax(-1)
                top = probs.gather(1, predicted[:, None])[:, 0]
                made = bin_statistics(top, predicted == labels, self.n_bins, closed=closed)
                total += made.table[:2, None].cpu()
            else:
                table = classwise_statistics(probs, labels, self.n_bins, closed=closed).table
                total += table[:2].cpu()
        return total

    def _values(self, table: Tensor) -> Tensor:
        """[C, B] float64 probability per bin; NaN where a probability stays as it is."""
        count, positives = table.double()
        edges = equal_edges(self.name, self.n_bins)
        midpoint = (edges[1:] + edges[:-1]) / 2
        fill = midpoint if self.empty == "midpoint" else torch.full_like(midpoint, torch.nan)
        values = torch.where(count > 0, positives / count.clamp(min=1), fill)
        if self.mode == "one_versus_rest":
            absent = positives.sum(-1, keepdim=True) == 0
            values = values.where(~absent, 0.0 if self.absent == "zero" else torch.nan)
        return values


def _look_up(probs: Tensor, values: Tensor, right: bool) -> Tensor:
    """The value of the bin of each probability [R, C] in its class's row of `values` [C, B]."""
    n_bins = values.shape[1]
    interior = equal_edges("hb", n_bins, probs.device)[1:-1]
    above = thresholds(interior, probs.dtype, right)
    found = values[:, 0].repeat(len(probs), 1)
    if n_bins > 1:
        # of many classes nearly all probabilities are in the first bin
        flat = (probs >= above[0]).flatten().nonzero()[:, 0]
        index = torch.bucketize(probs.flatten()[flat], above, right=True)
        found.view(-1)[flat] = values.flatten().take(flat % len(values) * n_bins + index)
    return torch.where(found.isnan(), probs, found) if bool(values.isnan().any()) else found

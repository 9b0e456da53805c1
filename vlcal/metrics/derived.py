"""Metrics that are arithmetic on something several of them share, which is gathered once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from vlcal.metrics.binned import Binned, binned
from vlcal.metrics.conventions import Convention
from vlcal.metrics.needs import refuse_empty
from vlcal.types import Outcomes

Shared = TypeVar("Shared")


class Derived(Generic[Shared]):
    """A metric of outcomes: `formula` of what `gather` finds in them.

    Args:
        gather: what is shared, from outcomes and a convention.
        formula: the metric, from what was gathered; its name and docstring are the metric's.
    """

    __name__: str

    def __init__(
        self,
        gather: Callable[[Outcomes, Convention], Shared],
        formula: Callable[[Shared], float],
    ) -> None:
        self.gather, self.formula = gather, formula
        self.__name__, self.__doc__ = formula.__name__, formula.__doc__
        self.__module__ = formula.__module__

    def __reduce__(self) -> str:
        return self.__name__

    def __call__(self, outcomes: Outcomes, convention: Convention) -> float:
        """The metric of these outcomes under the convention."""
        refuse_empty(self.__name__, outcomes)
        return self.formula(self.gather(outcomes, convention))


class OverBins(Derived[Binned]):
    """A metric over the confidence bins of the convention, which may average batches."""

    def __init__(self, formula: Callable[[Binned], float]) -> None:
        super().__init__(binned, formula)

    def __call__(self, outcomes: Outcomes, convention: Convention) -> float:
        """The metric of these outcomes under the convention."""
        if convention.batch_size is None:
            return super().__call__(outcomes, convention)
        refuse_empty(self.__name__, outcomes)
        parts = zip(
            outcomes.confidence.split(convention.batch_size),
            outcomes.correct.split(convention.batch_size),
            strict=True,
        )
        total = sum(
            len(part[0]) * self.formula(binned(Outcomes(*part), convention)) for part in parts
        )
        return total / len(outcomes.confidence)

"""Calibrators that are chosen by name, with options, and refuse as early as they can."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vlcal.calibrators.base import Calibrator, Chain
from vlcal.types import Predictions

Options = Mapping[str, Mapping[str, Any]]


class Chosen(NamedTuple):
    """A calibrator, or a chain of several, that is not made yet.

    `name` as it was asked for, `classes` of its steps, `options` of their constructors by name.
    """

    name: str
    classes: tuple[type, ...]
    options: dict[str, dict[str, Any]]

    def make(self) -> Calibrator | Chain:
        """A new one, unfitted."""
        steps = [each(**self.options.get(_name(each), {})) for each in self.classes]
        return steps[0] if len(steps) == 1 else Chain(steps)


def choose(named: Callable[[str], type], names: Sequence[str], options: Options) -> list[Chosen]:
    """The calibrators of these names, each once; what their constructors refuse is raised here.

    Args:
        named: gives the class of a name.
        names: each a calibrator, or a chain as in "ts+dac".
        options: arguments of constructors, by the name of the calibrator.

    Raises:
        ValueError: a name or an option is not known, or belongs to nobody of these.
    """
    found = []
    for name in dict.fromkeys(names):
        classes = tuple(named(part) for part in name.split("+"))
        own = {n: dict(options[n]) for n in map(_name, classes) if options.get(n)}
        for cls in classes:
            _check_options(cls, own.get(_name(cls), {}))
        found.append(Chosen(name, classes, own))
        found[-1].make()
    owners = {_name(cls) for each in found for cls in each.classes}
    if alone := [name for name in options if name not in owners]:
        raise ValueError(
            f"calibrators: options of {alone[0]} need it to be one of them, got "
            f"{', '.join(names) or 'none'}"
        )
    return found


def refuse_early(chosen: Sequence[Chosen], untuned: Predictions) -> None:
    """Fit those that read no labels to the untuned model, so that they refuse before it is tuned.

    Raises:
        ValueError: one cannot be fitted; the message says that nothing was tuned.
    """
    for each in chosen:
        if "labels" in each.make().needs:
            continue
        try:
            each.make().fit(untuned)
        except ValueError as refusal:
            raise ValueError(
                f"{refusal}; so is leaving {each.name} out of the calibrators. Nothing was tuned"
            ) from refusal


def fit_all(chosen: Sequence[Chosen], val: Predictions) -> dict[str, Calibrator | Chain]:
    """Fitted calibrators by name.

    Raises:
        ValueError: one cannot be fitted; the message says that the tuned model is kept.
    """
    fitted = {}
    for each in chosen:
        try:
            fitted[each.name] = each.make().fit(val)
        except ValueError as refusal:
            raise ValueError(
                f"{refusal}. The tuned model is kept: the same call without {each.name} among the "
                "calibrators goes on from it"
            ) from refusal
    return fitted


def _name(cls: type) -> str:
    return getattr(cls, "name", "")


def _check_options(cls: type, options: Mapping[str, Any]) -> None:
    known = list(inspect.signature(cls).parameters)
    for option in options:
        if option not in known:
            raise ValueError(
                f"{_name(cls)}: unknown option {option!r}; known: {', '.join(known) or 'none'}"
            )

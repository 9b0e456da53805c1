"""Training-time calibration: terms and rescalings that work with every tuner."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from vlcal.regularizers.base import EncodeText, Regularizer, Setup
from vlcal.regularizers.dor import DOR
from vlcal.regularizers.knowledge import Knowledge

REGULARIZERS: tuple[type[Regularizer], ...] = (DOR, Knowledge)


def regularizer(name: str) -> type[Regularizer]:
    """The regularizer of this name, or of a dotted path `package.module:Class`."""
    known = {cls.name: cls for cls in REGULARIZERS}
    if name in known:
        return known[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(
            f"regularizer: unknown name {name!r}; known: {', '.join(known)}, "
            "or package.module:Class"
        )
    cls = getattr(importlib.import_module(module), attribute, None)
    if not (isinstance(cls, type) and issubclass(cls, Regularizer)):
        raise ValueError(f"regularizer: {name} is not a Regularizer")
    return cls


def make(
    name: str, options: Mapping[str, Any], *, tuner: str, new_names: Iterable[str] = ()
) -> Regularizer:
    """A regularizer for a tuner of this name: published arguments, and the given ones above them.

    Args:
        name: as for `regularizer`.
        options: arguments of its constructor.
        tuner: a tuner's name; it chooses among the published arguments.
        new_names: of the new classes, for a regularizer that takes them.

    Raises:
        ValueError: an unknown name or option; the message lists the known ones.
    """
    cls = check_options(name, options)
    given = dict(cls.published.get(tuner, cls.published.get("*", {}))) | dict(options)
    if "new_names" in inspect.signature(cls).parameters:
        given.setdefault("new_names", tuple(new_names))
    return cls(**given)


def check_options(name: str, options: Iterable[str]) -> type[Regularizer]:
    """The regularizer of this name, if it has these options."""
    cls = regularizer(name)
    known = list(inspect.signature(cls).parameters)
    for option in options:
        if option not in known:
            raise ValueError(
                f"{cls.name}: unknown option {option!r}; known: {', '.join(known) or 'none'}"
            )
    return cls


__all__ = [
    "DOR",
    "REGULARIZERS",
    "EncodeText",
    "Knowledge",
    "Regularizer",
    "Setup",
    "check_options",
    "make",
    "regularizer",
]

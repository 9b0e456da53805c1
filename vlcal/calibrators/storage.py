"""Fitted calibrators as one safetensors file: tensors, JSON for the rest, nothing unpickled.

A calibrator that holds others, in a field or in a list, is saved with them. One that defines
`check_loaded` is asked after loading whether its learned values fit together.
"""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vlcal._files import write_atomic
from vlcal.calibrators.base import Calibrator, Chain

FORMAT = 1


def save_calibrator(calibrator: Calibrator | Chain, path: str | Path) -> None:
    """Write a calibrator, with its parameters and what it has learned, to one file."""
    tensors: dict[str, Tensor] = {}
    about = {"format": FORMAT, "calibrator": _describe(calibrator, "", tensors)}
    write_atomic(path, save(tensors, {"vlcal": json.dumps(about)}))


def load_calibrator(path: str | Path, classes: tuple[type, ...] = ()) -> Any:
    """Read what `save_calibrator` wrote.

    A file names its class; only the classes of `CALIBRATORS`, `Chain` and those given here are
    made, so that a file cannot choose what is imported.

    Args:
        path: the file.
        classes: further classes that the file may name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, foreign, of another format, names another class, or its
            values do not fit together.
    """
    from vlcal.calibrators import CALIBRATORS

    if not Path(path).is_file():
        raise FileNotFoundError(f"load_calibrator: no such file: {path}")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("vlcal", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(
            f"load_calibrator: {path} is not a readable safetensors file: {error}"
        ) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or "calibrator" not in about:
        raise ValueError(
            f"load_calibrator: {path} was not written by save_calibrator (format {FORMAT} expected)"
        )
    known = {each.name: each for each in (*CALIBRATORS, Chain, *classes)}
    try:
        return _make(about["calibrator"], tensors, known)
    except RecursionError:
        raise ValueError(f"load_calibrator: {path} nests calibrators too deeply") from None


def _describe(
    calibrator: Calibrator | Chain, prefix: str, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """Name, parameters and learned values as JSON; tensors go to `tensors` under their path."""
    values = {}
    for each in fields(calibrator):  # type: ignore[arg-type]
        value = getattr(calibrator, each.name)
        values[each.name] = _plain(value, f"{prefix}{each.name}", tensors)
    return {"name": calibrator.name, "values": values}


def _plain(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # cloned, because safetensors refuses names that share memory
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if is_dataclass(value) and not isinstance(value, type):
        return _describe(value, f"{path}.", tensors)  # type: ignore[arg-type]
    if isinstance(value, (list, tuple)):
        return [_plain(each, f"{path}.{index}", tensors) for index, each in enumerate(value)]
    return value


def _make(about: Any, tensors: dict[str, Tensor], known: dict[str, type]) -> Any:
    if not _is_description(about):
        raise ValueError("load_calibrator: a calibrator must have a name and values")
    if about["name"] not in known:
        raise ValueError(
            f"load_calibrator: unknown calibrator {about['name']!r}; known: {', '.join(known)}; "
            "give others as classes="
        )
    cls = known[about["name"]]
    declared = {each.name: each for each in fields(cls)}
    if set(about["values"]) != set(declared):
        raise ValueError(
            f"load_calibrator: {about['name']} has the fields {sorted(declared)}, "
            f"the file has {sorted(about['values'])}"
        )
    values = {name: _value(value, tensors, known) for name, value in about["values"].items()}
    try:
        made = cls(**{name: value for name, value in values.items() if declared[name].init})
    except TypeError as error:
        raise ValueError(
            f"load_calibrator: {about['name']} cannot be made with these options: {error}"
        ) from error
    for name, value in values.items():
        if not declared[name].init:
            setattr(made, name, value)
    if hasattr(made, "check_loaded"):
        made.check_loaded()
    return made


def _value(value: Any, tensors: dict[str, Tensor], known: dict[str, type]) -> Any:
    if _is_description(value):
        return _make(value, tensors, known)
    if isinstance(value, dict):
        if set(value) != {"tensor"} or value["tensor"] not in tensors:
            raise ValueError(f"load_calibrator: the file has no tensor for {str(value)[:80]}")
        return tensors[value["tensor"]]
    if isinstance(value, list):
        if all(isinstance(each, str) for each in value):
            return tuple(value)
        return [_value(each, tensors, known) for each in value]
    return value


def _is_description(value: Any) -> bool:
    """Whether this is what `_describe` writes, nested or not."""
    return (
        isinstance(value, dict)
        and set(value) == {"name", "values"}
        and isinstance(value["name"], str)
        and isinstance(value["values"], dict)
    )

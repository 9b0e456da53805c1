"""Fitted calibrators as one safetensors file: tensors, JSON for the rest, nothing unpickled."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vlcal._files import write_atomic
from vlcal.calibrators.base import Calibrator, Chain

FORMAT = 1


def save_calibrator(calibrator: Calibrator, path: str | Path) -> None:
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
        ValueError: the file is damaged, foreign, of another format or names another class.
    """
    from vlcal.calibrators import CALIBRATORS

    if not Path(path).is_file():
        raise FileNotFoundError(f"load_calibrator: no such file: {path}")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("vlcal", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"load_calibrator: {path} is not a readable safetensors file: {error}"
        ) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or "calibrator" not in about:
        raise ValueError(
            f"load_calibrator: {path} was not written by save_calibrator (format {FORMAT} expected)"
        )
    known = {each.name: each for each in (*CALIBRATORS, Chain, *classes)}
    return _make(about["calibrator"], tensors, known)


def _describe(calibrator: Calibrator, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Name, parameters and learned values as JSON; tensors go to `tensors` under their path."""
    values = {each.name: getattr(calibrator, each.name) for each in fields(calibrator)}  # type: ignore[arg-type]
    if isinstance(calibrator, Chain):
        values["steps"] = [
            _describe(step, f"{prefix}{index}.", tensors)
            for index, step in enumerate(calibrator.steps)
        ]
    for name, value in values.items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value.detach().cpu().contiguous()
            values[name] = {"tensor": prefix + name}
    return {"name": calibrator.name, "values": values}


def _make(about: dict[str, Any], tensors: dict[str, Tensor], known: dict[str, type]) -> Any:
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
    values = {name: _value(value, tensors) for name, value in about["values"].items()}
    if cls is Chain:
        values["steps"] = [_make(step, tensors, known) for step in values["steps"]]
    made = cls(**{name: value for name, value in values.items() if declared[name].init})
    for name, value in values.items():
        if not declared[name].init:
            setattr(made, name, value)
    return made


def _value(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict) and set(value) == {"tensor"}:
        return tensors[value["tensor"]]
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    return value

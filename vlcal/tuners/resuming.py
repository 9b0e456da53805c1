"""The state of a training in one file: what is learned, momentum, generators, history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vlcal._files import write_atomic
from vlcal.tuners.base import Tuner

FORMAT = 2


class Holder(Protocol):
    """Something beside the tuner that the next step depends on: a regularizer, a loss scale."""

    def state_dict(self) -> dict[str, Tensor]:
        """What it holds."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        ...


def store(
    path: Path,
    about: dict[str, Any],
    history: list[dict[str, Any]],
    tuner: Tuner,
    optimizer: torch.optim.Optimizer,
    generators: Sequence[torch.Generator],
    holders: Sequence[Holder] = (),
) -> None:
    """Write everything that the next epoch depends on."""
    from safetensors.torch import save

    tensors = {f"tuner.{name}": value for name, value in tuner.state_dict().items()}
    tensors |= {f"training.{name}": value for name, value in tuner.training_state().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{number}.{name}"] = value
    for number, generator in enumerate(generators):
        tensors[f"generator.{number}"] = generator.get_state()
    for number, holder in enumerate(holders):
        for name, value in holder.state_dict().items():
            tensors[f"holder.{number}.{name}"] = value
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"vlcal": json.dumps({"format": FORMAT, "run": about, "history": history})}
    write_atomic(path, save(tensors, metadata))


def restore(
    path: Path,
    about: dict[str, Any],
    tuner: Tuner,
    optimizer: torch.optim.Optimizer,
    generators: Sequence[torch.Generator],
    holders: Sequence[Holder] = (),
) -> list[dict[str, Any]]:
    """Put back what `store` wrote and return the history.

    Raises:
        ValueError: the file is truncated, foreign, or belongs to another run; the message names the
            difference.
    """
    stored, tensors = _read(path)
    wanted = json.loads(json.dumps(about))
    for key in wanted:
        if stored["run"].get(key) != wanted[key]:
            raise ValueError(
                f"fit: the checkpoint {path} belongs to another run: {key} was "
                f"{_short(stored['run'].get(key))}, is {_short(wanted[key])}; "
                "use another file or remove it"
            )
    count = sum(name.startswith("generator.") for name in tensors)
    if count != len(generators):
        raise ValueError(
            f"fit: the checkpoint {path} belongs to another run: the loader had {count} "
            f"generators, has {len(generators)}"
        )
    tuner.load_state_dict(_below(tensors, "tuner."), strict=True)
    for name, value in tuner.training_state().items():
        value.copy_(tensors[f"training.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, "optimizer.").items():
        number, _, field = name.partition(".")
        state.setdefault(int(number), {})[field] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    for number, generator in enumerate(generators):
        generator.set_state(tensors[f"generator.{number}"])
    for number, holder in enumerate(holders):
        holder.load_state_dict(_below(tensors, f"holder.{number}."))
    return stored["history"]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            stored = json.loads((file.metadata() or {}).get("vlcal", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"fit: the checkpoint {path} cannot be read: {error}") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT or "run" not in stored:
        raise ValueError(f"fit: {path} is no checkpoint of this vlcal (format {FORMAT} expected)")
    return stored, tensors


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."

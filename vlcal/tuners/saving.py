"""Tuners on disk: what was learned as safetensors, everything else as JSON, read back strictly."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from vlcal._files import write_atomic
from vlcal.clip import CLIP
from vlcal.tuners.base import Tuner
from vlcal.types import ClassSet

FORMAT = 1
_KEYS = {"format", "tuner", "hyperparameters", "classes", "template", "clip", "model", "vlcal"}


def save_tuner(tuner: Tuner, folder: str | Path) -> None:
    """Write `model.safetensors` (exactly what was learned) and `config.json` into a folder."""
    from safetensors.torch import save

    from vlcal import __version__

    tensors = {k: v.detach().cpu().contiguous() for k, v in tuner.state_dict().items()}
    weights = save(tensors)
    about = {
        "format": FORMAT,
        "tuner": tuner.name,
        "hyperparameters": tuner.hyperparameters,
        "classes": list(tuner.classes.names),
        "template": tuner.classes.template,
        "clip": {"name": tuner.clip.name, "fingerprint": tuner.clip.fingerprint()},
        "model": hashlib.sha256(weights).hexdigest(),
        "vlcal": __version__,
    }
    write_atomic(Path(folder) / "model.safetensors", weights)
    write_atomic(Path(folder) / "config.json", json.dumps(about, indent=1, ensure_ascii=False))


def load_tuner(
    folder: str | Path, clip: CLIP, *, known: Iterable[type[Tuner]] | None = None
) -> Tuner:
    """The tuner that `save_tuner` wrote, on the CLIP model that it was trained with.

    Args:
        folder: holds `model.safetensors` and `config.json`.
        clip: must have the fingerprint of the model used in training.
        known: the classes that a name in the file may stand for; all of `TUNERS` by default.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is truncated, foreign, edited or belongs to another model; the message
            says which.
    """
    from vlcal.tuners import TUNERS

    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"load_tuner: no such file: {folder / name}")
    about = _read_config(folder / "config.json")
    if about["clip"]["fingerprint"] != clip.fingerprint():
        raise ValueError(
            f"load_tuner: {folder} belongs to CLIP {about['clip']['name']!r} "
            f"({about['clip']['fingerprint'][:12]}), got {clip.name!r} ({clip.fingerprint()[:12]})"
        )
    tensors = _read_weights(folder / "model.safetensors", about["model"])
    classes = {cls.name: cls for cls in (TUNERS if known is None else known)}
    if about["tuner"] not in classes:
        raise ValueError(
            f"load_tuner: unknown tuner {about['tuner']!r}; known: {', '.join(classes)}"
        )
    cls = classes[about["tuner"]]
    check_options(cls, about["hyperparameters"])
    tuner = cls(
        clip, ClassSet(tuple(about["classes"]), about["template"]), **about["hyperparameters"]
    )
    _check_state(folder, tuner.state_dict(), tensors)
    tuner.load_state_dict(tensors, strict=True)
    return tuner.eval()


def check_options(cls: Any, options: Iterable[str]) -> None:
    """Raise a ValueError that lists the known options if the tuner lacks one of these."""
    parameters = inspect.signature(cls).parameters
    known = [name for name in parameters if name not in ("clip", "classes")]
    for name in options:
        if name not in known:
            raise ValueError(
                f"{cls.name}: unknown option {name!r}; known: {', '.join(known) or 'none'}"
            )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"load_tuner: {path} is not JSON: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or set(about) != _KEYS:
        raise ValueError(f"load_tuner: {path} was not written by vlcal (format {FORMAT} expected)")
    return about


def _read_weights(path: Path, digest: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = path.read_bytes()
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(f"load_tuner: {path} is truncated or not safetensors: {error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"load_tuner: {path} is not the file that config.json was written with")
    return tensors


def _check_state(folder: Path, wanted: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    def shapes(state: dict[str, Tensor]) -> list[str]:
        return sorted(f"{name} {list(value.shape)}" for name, value in state.items())

    if shapes(wanted) != shapes(got):
        raise ValueError(
            f"load_tuner: {folder} must hold exactly {', '.join(shapes(wanted)) or 'nothing'}, "
            f"got {', '.join(shapes(got)) or 'nothing'}"
        )

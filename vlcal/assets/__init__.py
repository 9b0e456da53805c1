"""The bundled files: icon images, icon CLIP, noun list (origin and licences: README.md here)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_FOLDER = Path(__file__).resolve().parent
_EMBEDDING = "token_embedding."


def asset(name: str) -> Path:
    """The path of a bundled file.

    Args:
        name: the file's name as listed in assets/README.md.

    Raises:
        ValueError: no such file is bundled; the message lists those that are.
    """
    known = sorted(
        path.name for path in _FOLDER.iterdir() if path.is_file() and path.suffix != ".py"
    )
    if name not in known:
        raise ValueError(f"asset: no bundled file {name!r}; bundled: {', '.join(known)}")
    return _FOLDER / name


def icon_clip_config() -> dict[str, Any]:
    """The icon CLIP's `model_cfg` (open_clip's), `preprocess_cfg`, `template` and figures."""
    return json.loads(asset("icon_clip.json").read_text(encoding="utf-8"))


def icon_clip_weights() -> dict[str, Tensor]:
    """The icon CLIP's weights: a plain float32 state dict for `open_clip.model.CLIP(**model_cfg)`.

    The file holds float16 tensors, except for the token embedding: integer codes, see `pack_rows`.
    """
    from safetensors.torch import load_file

    stored = load_file(asset("icon_clip.safetensors"))
    parts = {
        name.removeprefix(_EMBEDDING): stored.pop(name)
        for name in list(stored)
        if name.startswith(_EMBEDDING)
    }
    weights = {name: value.float() for name, value in stored.items()}
    return weights | {"token_embedding.weight": unpack_rows(**parts)}


def pack_rows(rows: Tensor, refined: Tensor) -> dict[str, Tensor]:
    """Integer codes of the rows of a matrix: 12 bits where `refined`, 8 bits elsewhere.

    A value is `scale * (16 * high + low) / 2048`; rows that are not refined have no `low`.

    Args:
        rows: [V, W] floating point, W even.
        refined: [V] bool.

    Returns:
        high [V, W] int8, scale [V] float16, low [R, W / 2] uint8 (two 4-bit codes a byte, R rows
        are refined), refined [V] bool.
    """
    largest = torch.where(refined, 2047.0, 2032.0)  # 2032 = 16 * 127
    scale = (rows.float().abs().amax(1) * 2048 / largest).half()
    step = scale.float().clamp(min=torch.finfo(torch.float16).tiny) / 2048
    coarse = torch.where(refined, 1.0, 16.0)
    codes = (rows.float() / (step * coarse)[:, None]).round() * coarse[:, None]
    codes = codes.clamp(-2048, 2047).to(torch.int16)
    low = (codes & 15).to(torch.uint8)[refined]
    return {
        "high": (codes >> 4).to(torch.int8),
        "scale": scale,
        "low": low[:, 0::2] | (low[:, 1::2] << 4),
        "refined": refined,
    }


def unpack_rows(high: Tensor, scale: Tensor, low: Tensor, refined: Tensor) -> Tensor:
    """The float32 rows [V, W] that `pack_rows` coded."""
    codes = high.to(torch.int16) * 16
    codes[refined] += torch.stack((low & 15, low >> 4), -1).flatten(1).to(torch.int16)
    return codes.float() * (scale.float() / 2048)[:, None]

"""Load a CLIP by name: the bundled icon model, or an open_clip architecture with its weights.

Nothing is downloaded unless `download=True`, and nothing is unpickled beyond tensors.
"""

from __future__ import annotations

import difflib
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from vlcal._optional import optional
from vlcal.clip.model import CLIP, Preprocess
from vlcal.clip.tiny import byte_pair_tokenizer

BUNDLED = "icons"
_PICKLED = (".pt", ".pth", ".bin")
_FACTS = ("mean", "std", "interpolation", "resize_mode")


def load(
    name: str = BUNDLED,
    *,
    pretrained: str | None = None,
    checkpoint: str | Path | None = None,
    download: bool = False,
    trust: bool = False,
    device: str | torch.device = "cpu",
) -> CLIP:
    """A CLIP ready to encode.

    Args:
        name: "icons" for the bundled model, or an open_clip architecture such as "ViT-B-16".
        pretrained: open_clip's tag of published weights ("openai", "laion2b_s34b_b88k"). It decides
            where the weights are looked for, how images are preprocessed and which activation is
            used.
        checkpoint: weights in a local file instead: `.safetensors`, or `.pt`, `.pth`, `.bin` read
            as tensors only. Without a tag the architecture's own activation and OpenAI's
            preprocessing are assumed.
        download: fetch weights that are not in the local caches. `HF_HUB_OFFLINE=1` forbids it all
            the same.
        trust: read `.pt`, `.pth` and `.bin` files on torch before 2.10, whose tensor-only reader
            can be made to execute code (CVE-2026-24747); not needed for `.safetensors` or a newer
            torch.
        device: where to put the model.

    Raises:
        FileNotFoundError: the weights are not here; the message names the files, the folders
            searched and the way out.
        ValueError: unknown name or tag, or a file that does not hold this architecture's weights.
        ImportError: open_clip or its torchvision cannot be imported.
    """
    if name == BUNDLED:
        if pretrained is not None or checkpoint is not None:
            raise ValueError(
                f"load: {BUNDLED!r} brings its weights; leave out pretrained and checkpoint"
            )
        return _bundled().to(device)
    open_clip = optional("open_clip", "clip", f"load({name!r})")
    name = name.replace("/", "-")
    config = _architecture(open_clip, name, download)
    tag = _tag(open_clip, name, pretrained)
    path = _weights(open_clip, name, tag, checkpoint, download)
    _refuse_unsafe(path, trust)
    config["quick_gelu"] = _quick_gelu(name, config, tag)
    model = _build(open_clip, name, config, tag, path)
    tokenizer = open_clip.get_tokenizer(name)
    return CLIP(model, tokenizer, _preprocess(open_clip, model), name=name, config=config).to(
        device
    )


def _bundled() -> CLIP:
    open_clip = optional("open_clip", "clip", "load('icons')")
    from vlcal import assets

    about = assets.icon_clip_config()
    config, images = about["model_cfg"], about["preprocess_cfg"]
    with torch.device("meta"):
        model = open_clip.CLIP(**config)
    # the causal mask is not among the weights, so it is the only tensor to compute here
    mask = torch.full((config["text_cfg"]["context_length"],) * 2, float("-inf")).triu_(1)
    model.load_state_dict(assets.icon_clip_weights(), assign=True, strict=True)
    model.register_buffer("attn_mask", mask, persistent=False)
    preprocess = Preprocess(
        images["size"], tuple(images["mean"]), tuple(images["std"]), images["interpolation"]
    )
    tokenizer = byte_pair_tokenizer(config["text_cfg"]["context_length"])
    return CLIP(
        model, tokenizer, preprocess, name=BUNDLED, config=config, template=about["template"]
    )


def _architecture(open_clip: Any, name: str, download: bool) -> dict[str, Any]:
    if ":" in name:
        raise ValueError(
            f"load: {name!r} is resolved on a hub; "
            "give an architecture such as 'ViT-B-16' and checkpoint=FILE"
        )
    known = [BUNDLED, *open_clip.list_models()]
    if name not in known:
        close = difflib.get_close_matches(name, known, 4, 0.4)
        raise ValueError(
            f"load: unknown model {name!r}; close: {', '.join(close) or 'none'}; "
            f"all {len(known)} are listed by open_clip.list_models()"
        )
    config = deepcopy(open_clip.get_model_config(name))
    text = config["text_cfg"]
    if (text.get("hf_model_name") or text.get("hf_tokenizer_name")) and not download:
        raise ValueError(
            f"load: {name} takes its text side from the Hugging Face hub, which may open a "
            "connection; allow it with download=True"
        )
    return config


def _tags(open_clip: Any, name: str) -> list[str]:
    return [tag for model, tag in open_clip.list_pretrained() if model == name]


def _tag(open_clip: Any, name: str, pretrained: str | None) -> dict[str, Any]:
    if pretrained is None:
        return {}
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag:
        raise ValueError(
            f"load: {name} has no weights {pretrained!r}; "
            f"known: {', '.join(_tags(open_clip, name)) or 'none'}"
        )
    return tag


def _weights(
    open_clip: Any, name: str, tag: dict[str, Any], checkpoint: str | Path | None, download: bool
) -> Path:
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(f"load: no such checkpoint file: {checkpoint}")
        return Path(checkpoint)
    if not tag:
        raise ValueError(
            f"load: {name} needs weights: checkpoint=FILE, or pretrained=one of "
            f"{_tags(open_clip, name)}"
        )
    return _find(open_clip, name, tag, download)


def _quick_gelu(name: str, config: dict[str, Any], tag: dict[str, Any]) -> bool:
    """The activation the weights were trained with: the tag knows, the architecture guesses."""
    guess = bool(config.get("quick_gelu", False))
    known = bool(tag.get("quick_gelu", False)) if tag else guess
    if guess and not known:
        raise ValueError(
            f"load: these weights were not trained with QuickGELU; "
            f"use {name.removesuffix('-quickgelu')!r}"
        )
    return known


def _find(open_clip: Any, name: str, tag: dict[str, Any], download: bool) -> Path:
    """The weights of a tag in the local caches, downloaded only if allowed."""
    hub = optional("huggingface_hub", "clip", "load")
    wanted = []
    if tag.get("hf_hub"):
        repository, file = os.path.split(tag["hf_hub"])
        files = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        for file in files:
            cached = hub.try_to_load_from_cache(repository, file)
            if isinstance(cached, str):
                return Path(cached)
        wanted.append(f"{' or '.join(files)} of {repository} in {hub.constants.HF_HUB_CACHE}")
    if tag.get("url"):
        cached = Path("~/.cache/clip").expanduser() / os.path.basename(tag["url"])
        # OpenAI's own files are TorchScript programs, which nothing here executes
        if cached.is_file() and "openaipublic" not in tag["url"]:
            return cached
        if "openaipublic" not in tag["url"]:
            wanted.append(str(cached))
    missing = f"load: the weights of {name} are not on this machine; looked for {'; '.join(wanted)}"
    if not download:
        raise FileNotFoundError(
            f"{missing}. Get them once with download=True (on the command line --download), "
            "or copy the file here and give checkpoint=FILE"
        )
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise FileNotFoundError(f"{missing}. HF_HUB_OFFLINE forbids the download; unset it")
    return Path(open_clip.download_pretrained(tag))


def _refuse_unsafe(path: Path, trust: bool) -> None:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return
    if suffix not in _PICKLED:
        raise ValueError(
            f"load: a checkpoint must end in .safetensors, .pt, .pth or .bin, got {path.name}"
        )
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 10) and not trust:
        raise ValueError(
            f"load: {path.name} is a pickle, and torch {torch.__version__}'s tensor-only reader "
            "can be made to execute code (CVE-2026-24747, fixed in 2.10); "
            "convert it to .safetensors, update torch, or give trust=True"
        )


def _build(
    open_clip: Any, name: str, config: dict[str, Any], tag: dict[str, Any], path: Path
) -> Any:
    try:
        # open_clip reads pickles with weights_only=True, by its default and not only by torch's
        return open_clip.create_model(
            name,
            pretrained=str(path),
            force_quick_gelu=config["quick_gelu"],
            force_preprocess_cfg={key: tag[key] for key in _FACTS if key in tag},
        )
    except Exception as error:
        cause = str(error).strip().splitlines()
        raise ValueError(
            f"load: {path} does not hold readable weights of {name}: {' '.join(cause[:2])[:300]}"
        ) from error


def _preprocess(open_clip: Any, model: Any) -> Preprocess:
    facts = open_clip.get_model_preprocess_cfg(model)
    size = facts["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"load: images must be square, this model wants {size}")
    return Preprocess(
        sides.pop(),
        tuple(facts["mean"]),
        tuple(facts["std"]),
        facts["interpolation"],
        facts["resize_mode"],
    )

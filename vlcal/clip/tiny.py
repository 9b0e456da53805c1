"""A seeded random CLIP for tests and documentation: built in milliseconds, downloads nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from vlcal._optional import optional
from vlcal.clip.model import CLIP, Preprocess

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {
        "context_length": 24,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}


def tiny_clip(seed: int = 0) -> CLIP:
    """A random float32 CLIP: 16-pixel images, 16 features, 24 positions, CLIP's own tokenizer.

    Its features mean nothing, but different words and different images get clearly different ones.
    Equal for equal seeds; the global random state is left alone.
    """
    open_clip = optional("open_clip", "clip", "tiny_clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**CONFIG)
        with torch.no_grad():
            # with open_clip's initial weights attention is flat and all inputs look alike
            model.token_embedding.weight.mul_(20)
            for tower in (model.transformer, model.visual.transformer):
                for block in tower.resblocks:
                    block.attn.in_proj_weight.mul_(4)
                    block.attn.out_proj.weight.mul_(4)
    preprocess = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
    return CLIP(model, byte_pair_tokenizer(24), preprocess, name=f"tiny-{seed}", config=CONFIG)


@lru_cache(maxsize=8)
def byte_pair_tokenizer(context_length: int) -> Any:
    """CLIP's tokenizer for one context length, kept: parsing its vocabulary takes 0.25 s."""
    open_clip = optional("open_clip", "clip", "byte_pair_tokenizer")
    return open_clip.SimpleTokenizer(context_length=context_length)

"""The parts of open_clip's transformer blocks that the towers put together in their own way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, cat, nn


def refuses_parts(blocks: Iterable[Any]) -> str | None:
    """Why blocks cannot be taken apart by `project` and `finish`; None if they can."""
    if any(not isinstance(block.attn, nn.MultiheadAttention) for block in blocks):
        return "its attention blocks are not open_clip's default ones"
    return None


def project(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [C, heads, L, W / heads] of a block's attention."""
    attention = block.attn
    joint = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = (part_heads(part, attention.num_heads) for part in joint.chunk(3, -1))
    return query, key, value


def part_heads(x: Tensor, heads: int) -> Tensor:
    """[..., L, W] as [..., heads, L, W / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def join_heads(x: Tensor) -> Tensor:
    """[..., heads, L, W / heads] as [..., L, W]."""
    return x.transpose(-2, -3).flatten(-2)


def finish(block: Any, x: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a block after its attention has mixed the values, heads joined [..., W]."""
    x = x + block.ls_1(block.attn.out_proj(mixed))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def run_blocks(
    blocks: Sequence[Any], x: Tensor, mask: Tensor | None, deep: Tensor | None, start: int
) -> Tensor:
    """Whole blocks on [B, L, W], with per-layer prompts at positions from `start` on."""
    for layer, block in enumerate(blocks):
        x = replace(x, deep, layer, start)
        if getattr(block.attn, "batch_first", True):
            x = block(x, attn_mask=mask)
        else:
            x = block(x.transpose(0, 1), attn_mask=mask).transpose(0, 1)
    return x


def replace(x: Tensor, deep: Tensor | None, layer: int, start: int) -> Tensor:
    """The input [B, L, W] of a block, its positions from `start` on replaced by deep[layer - 1].

    The first block, and those that `deep` [layers, n, W] has nothing for, keep their input.
    """
    if deep is None or not 1 <= layer <= len(deep):
        return x
    prompts = deep[layer - 1].to(x.dtype).expand(len(x), -1, -1)
    return cat([x[:, :start], prompts, x[:, start + prompts.shape[1] :]], 1)


def check_deep(who: str, deep: Tensor | None, n_blocks: int, width: int, room: int) -> None:
    """Refuse per-layer prompts that do not fit a tower.

    Args:
        who: starts the message.
        deep: [layers, n, W] or None.
        n_blocks: of the tower; its first block takes no per-layer prompt.
        width: W of the tower.
        room: the largest n.
    """
    if deep is None:
        return
    fits = deep.ndim == 3 and len(deep) < n_blocks and deep.shape[2] == width
    if not fits or deep.shape[1] > room:
        raise ValueError(
            f"{who}: deep must be [at most {n_blocks - 1}, at most {room}, {width}] "
            f"(blocks after the first, prompts, width), got {tuple(deep.shape)}"
        )

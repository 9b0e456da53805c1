"""Prompts of different lengths without padding, behind a prefix that is run once for all of them.

Under a causal mask the prefix does not see the prompts, so its keys and values are the same for
all. What works token by token (norms, projections, MLPs) runs on the tokens that exist, one after
the other; only the attention of a prompt on itself sees a padded rectangle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlcal.clip.blocks import finish, join_heads, part_heads, project, replace

Shared = tuple[Tensor, Tensor]


class Packing(NamedTuple):
    """Where the tokens of a rectangle [C, S] lie when they stand one after the other.

    Args:
        places: [T] place in the rectangle, row by row, of each token.
        tokens: [C * S] token at each place; after a prompt's end its last token, seen by nobody.
        last: [C] token that each feature is read from.
        end: [C] its column.
    """

    places: Tensor
    tokens: Tensor
    last: Tensor
    end: Tensor


def pack(end: Tensor, device: torch.device) -> Packing:
    """The packing of prompts that end at columns `end` [C], in a rectangle as wide as needed."""
    end = end.cpu()
    column = torch.arange(int(end.max()) + 1)
    first = (end + 1).cumsum(0) - end - 1
    places = (column <= end[:, None]).flatten().nonzero().flatten()
    tokens = (first[:, None] + torch.minimum(column, end[:, None])).flatten()
    return Packing(*(index.to(device) for index in (places, tokens, first + end, end)))


def prefix_layers(blocks: Sequence[Any], x: Tensor, deep: Tensor | None) -> list[Shared]:
    """Keys and values [B, heads, P, W / heads] of prefixes [B, P, W] in every block.

    Per-layer prompts stand behind the start token.
    """
    layers = []
    for layer, block in enumerate(blocks):
        x = replace(x, deep, layer, 1)
        query, key, value = project(block, x)
        layers.append((key, value))
        if layer + 1 < len(blocks):  # nobody reads the prefix after its last keys
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = finish(block, x, join_heads(mixed))
    return layers


def no_prefix(blocks: Sequence[Any], x: Tensor) -> list[Shared]:
    """What `prefix_layers` gives for a prefix of no tokens, in the type of `x` [..., W]."""
    heads = blocks[0].attn.num_heads
    nothing = x.new_zeros(1, heads, 0, x.shape[-1] // heads)
    return [(nothing, nothing)] * len(blocks)


def run_packed(
    blocks: Sequence[Any], layers: Sequence[Shared], x: Tensor, packing: Packing
) -> Tensor:
    """What stands at the ends [B, C, W] after all blocks.

    Args:
        blocks: open_clip's default ones, at least one.
        layers: keys and values of B prefixes in every block.
        x: [1, T, W] packed tokens with positions; in the first block they are one for all prefixes.
        packing: of the tokens.
    """
    column = torch.arange(int(packing.tokens.numel() // len(packing.end)), device=x.device)
    later = column > column[:, None]
    for block, shared in zip(blocks[:-1], layers[:-1], strict=True):
        query, key, value = _project_rectangle(block, x, packing)
        mixed = _attend(query, key, value, shared, later)
        x = finish(block, x, mixed.flatten(1, 2).index_select(1, packing.places))
    # of the last block's outputs only those at the ends are read
    query, key, value = _project_ends(blocks[-1], x, packing)
    mixed = _attend(query, key, value, layers[-1], column > packing.end[:, None, None, None])
    return finish(blocks[-1], x.index_select(1, packing.last), mixed.flatten(1, 2))


def _project_rectangle(block: Any, x: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, C, heads, S, W / heads]."""
    attention = block.attn
    joint = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    joint = joint.index_select(1, packing.tokens).unflatten(1, (len(packing.end), -1))
    query, key, value = (part_heads(part, attention.num_heads) for part in joint.chunk(3, -1))
    return query, key, value


def _project_ends(block: Any, x: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, C, heads, 1, W / heads] of the ends, keys and values of the rectangle."""
    attention, width = block.attn, x.shape[-1]
    x = block.ln_1(x)
    weights = attention.in_proj_weight.split((width, 2 * width))
    biases = attention.in_proj_bias.split((width, 2 * width))
    query = F.linear(x.index_select(1, packing.last), weights[0], biases[0]).unsqueeze(2)
    joint = F.linear(x, weights[1], biases[1]).index_select(1, packing.tokens)
    key, value = joint.unflatten(1, (len(packing.end), -1)).chunk(2, -1)
    heads = attention.num_heads
    return part_heads(query, heads), part_heads(key, heads), part_heads(value, heads)


def _attend(query: Tensor, key: Tensor, value: Tensor, shared: Shared, hidden: Tensor) -> Tensor:
    """Mixed values [B, C, queries, W] over the prefix's keys and the prompt's own.

    Scores are kept, which are few, and no copy of the prefix for every prompt is made.

    Args:
        query: [B or 1, C, heads, queries, W / heads]; key and value alike, with S places.
        key: of the prompts.
        value: of the prompts.
        shared: keys and values [B, heads, P, W / heads] of the prefixes.
        hidden: own places that a query does not see, broadcast to [C, heads, queries, S].
    """
    count, length = query.shape[1], query.shape[3]
    query = query * query.shape[-1] ** -0.5
    # one product per head for all prompts, [B, heads, C * queries, P]
    common = query.transpose(1, 2).flatten(2, 3) @ shared[0].transpose(-1, -2)
    common = common.unflatten(2, (count, length)).transpose(1, 2)
    own = (query @ key.transpose(-1, -2)).masked_fill(hidden, float("-inf"))
    weights = torch.cat([common, own.expand(len(common), -1, -1, -1, -1)], -1).softmax(-1)
    common, own = weights.split((common.shape[-1], own.shape[-1]), -1)
    mixed = common.transpose(1, 2).flatten(2, 3) @ shared[1]
    mixed = mixed.unflatten(2, (count, length)).transpose(1, 2) + own @ value
    return join_heads(mixed)

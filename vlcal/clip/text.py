"""The text tower without waste: padding is cut, and a prefix that all prompts share runs once.

Under a causal mask a position never sees what follows it. So cutting every prompt after its end
token is exact, and a prefix that all prompts share (start token and context) needs to be run once
instead of once per class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 256


class TextTower:
    """The text side of an open_clip model, fed with words, tokens or prompt embeddings.

    Holds no weight: everything is read from the model that it was made of.

    Args:
        model: an open_clip model with its own text transformer.
        tokenizer: the model's tokenizer, texts -> [C, L] token ids.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.source: Any = getattr(model, "text", model)
        self.tokenizer = tokenizer
        self.context_length = int(getattr(model, "context_length", 77))

    @property
    def width(self) -> int:
        """W, the width of token embeddings and prompts."""
        self._need_prompts("TextTower.width")
        return self.source.token_embedding.weight.shape[1]

    @property
    def causal(self) -> bool:
        """Whether no position sees what follows it: then padding is cut, prefixes are shared."""
        return getattr(self.source, "attn_mask", None) is not None

    def refuses_prompts(self) -> str | None:
        """Why this tower cannot be fed with prompt embeddings; None if it can."""
        if not hasattr(self.source, "token_embedding") or not hasattr(self.source, "transformer"):
            return "its text tower is not open_clip's own transformer"
        if getattr(self.source, "cls_emb", None) is not None:
            return "its text tower appends a class token to every text"
        if getattr(self.source, "use_pad_mask", False):
            return "its text tower masks padding by token id"
        if self._pooling not in ("argmax", "eos", "last"):
            return f"its text tower pools by {self._pooling!r}"
        return None

    def refuses_prefix(self) -> str | None:
        """Why prompts cannot share a prefix on this tower; None if they can."""
        if (why := self.refuses_prompts()) is not None:
            return why
        if not self.causal:
            return "its text tower is not causal, so a prefix sees what follows it"
        if any(not isinstance(block.attn, nn.MultiheadAttention) for block in self._blocks):
            return "its attention blocks are not open_clip's default ones"
        return None

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [C, L] of texts, padded to the context length.

        Raises:
            ValueError: a text needs more tokens than the context holds; nothing is truncated.
        """
        if isinstance(texts, str):
            raise ValueError("tokenize: texts must be a list of strings, got one string")
        texts = list(texts)
        tokens = self.tokenizer(texts)
        full = (tokens[:, -1] != 0).nonzero().flatten().tolist()
        # a text that fills the context was truncated if one more place changes its tokens
        longer = self.tokenizer([texts[i] for i in full], self.context_length + 1)[:, :-1]
        for row, wanted in zip(full, longer, strict=True):
            if not torch.equal(tokens[row], wanted):
                raise ValueError(
                    f"tokenize: a text must fit {self.context_length} tokens, got {texts[row]!r}; "
                    "shorten the name or the template"
                )
        return tokens

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings [C, L, W], without positions."""
        self._need_prompts("TextTower.embed")
        table = self.source.token_embedding
        return table(tokens.to(table.weight.device))

    def end(self, tokens: Tensor) -> Tensor:
        """Position [C] of the token that each text's feature is read from."""
        if self._pooling == "last":
            return torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
        if self._pooling == "eos":
            tokens = (tokens == self.source_eos).int()
        return tokens.argmax(-1)

    def encode(self, embeddings: Tensor, end: Tensor, *, chunk: int = CHUNK) -> Tensor:
        """Text features [C, D], not normalized, of prompts given as embeddings.

        Prompts are sorted by length and run in chunks, each cut after its longest end token; exact
        under the causal mask. A tower without one gets every position, so give it prompts padded as
        the tokenizer pads them.

        Args:
            embeddings: [C, L, W] without positions, L at most the context length.
            end: [C] position of the end token.
            chunk: prompts per pass.
        """
        self._need_prompts("TextTower.encode")
        longest = embeddings.shape[1]
        if longest > self.context_length:
            raise ValueError(
                f"TextTower.encode: prompts must have at most {self.context_length} positions, "
                f"got {longest}"
            )
        return self._in_chunks(self._encode_rows, embeddings, end, chunk, cut=self.causal)

    def encode_with_prefix(
        self, prefix: Tensor, suffix: Tensor, end: Tensor, *, chunk: int = CHUNK
    ) -> Tensor:
        """Text features [C, D], not normalized, of prompts that begin with the same embeddings.

        Equal to `encode` of the concatenations up to rounding, forward and backward; the prefix
        runs once per layer.

        Args:
            prefix: [P, W] shared by all prompts (start token and context), P at least 1.
            suffix: [C, S, W] the rest of each prompt, P + S at most the context length.
            end: [C] position of the end token in the suffix.
            chunk: prompts per pass.

        Raises:
            NotImplementedError: the tower cannot share a prefix; `refuses_prefix` says why. Use
                `encode` there.
        """
        if (why := self.refuses_prefix()) is not None:
            raise NotImplementedError(f"TextTower.encode_with_prefix: cannot run here, {why}")
        if len(prefix) + suffix.shape[1] > self.context_length:
            raise ValueError(
                "TextTower.encode_with_prefix: prompts must have at most "
                f"{self.context_length} positions, got {len(prefix)} + {suffix.shape[1]}"
            )
        layers = self._prefix_layers(prefix)

        def run(rows: Tensor, ends: Tensor) -> Tensor:
            return self._encode_suffix(layers, len(prefix), rows, ends)

        return self._in_chunks(run, suffix, end, chunk, cut=True)

    # -- below: how it runs

    @property
    def _blocks(self) -> Any:
        return self.source.transformer.resblocks

    @property
    def _pooling(self) -> str:
        flat = getattr(self.source, "text_pool_type", None)
        return flat or getattr(self.source, "pool_type", "argmax")

    @property
    def source_eos(self) -> int:
        """The end token's id where the tower pools by it."""
        flat = getattr(self.source, "text_eos_id", None)
        return flat if flat is not None else self.source.eos_id

    def _need_prompts(self, who: str) -> None:
        if (why := self.refuses_prompts()) is not None:
            raise NotImplementedError(f"{who}: prompts cannot be given as embeddings, {why}")

    def _in_chunks(
        self, run: Any, prompts: Tensor, end: Tensor, chunk: int, *, cut: bool
    ) -> Tensor:
        end = end.to(prompts.device)
        if not len(prompts):
            return prompts.new_zeros(0, self._output_width())
        order = end.argsort(stable=True)
        longest = (end[order] + 1).tolist()
        features = [
            run(prompts[rows, : longest[last] if cut else None], end[rows])
            for rows, last in _chunks(order, chunk)
        ]
        return torch.cat(features)[order.argsort()]

    def _output_width(self) -> int:
        projection = self.source.text_projection
        if isinstance(projection, nn.Linear):
            return projection.out_features
        return self.width if projection is None else projection.shape[1]

    def _encode_rows(self, embeddings: Tensor, end: Tensor) -> Tensor:
        length = embeddings.shape[1]
        x = embeddings + self.source.positional_embedding[:length].to(embeddings.dtype)
        mask = self.source.attn_mask[:length, :length] if self.causal else None
        return self._read_out(self.source.transformer(x, attn_mask=mask), end)

    def _read_out(self, x: Tensor, end: Tensor) -> Tensor:
        # the final norm works per position, so only the end positions need it
        x = self.source.ln_final(x[torch.arange(len(x), device=x.device), end])
        projection = self.source.text_projection
        if isinstance(projection, nn.Linear):
            return projection(x)
        return x if projection is None else x @ projection

    def _prefix_layers(self, prefix: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [1, heads, P, W / heads] of the prefix in every block."""
        x = prefix + self.source.positional_embedding[: len(prefix)].to(prefix.dtype)
        x, layers = x[None], []
        for block in self._blocks:
            query, key, value = _project(block, x)
            layers.append((key, value))
            x = _finish(block, x, F.scaled_dot_product_attention(query, key, value, is_causal=True))
        return layers

    def _encode_suffix(
        self, layers: list[tuple[Tensor, Tensor]], start: int, suffix: Tensor, end: Tensor
    ) -> Tensor:
        count, length, _ = suffix.shape
        positions = self.source.positional_embedding[start : start + length]
        mask = self.source.attn_mask[start : start + length, : start + length]
        x = suffix + positions.to(suffix.dtype)
        for block, shared in zip(self._blocks, layers, strict=True):
            query, *own = _project(block, x)
            key, value = (
                torch.cat([common.expand(count, -1, -1, -1), new], 2)
                for common, new in zip(shared, own, strict=True)
            )
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask.to(query.dtype)
            )
            x = _finish(block, x, mixed)
        return self._read_out(x, end)


def _chunks(order: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
    """Slices of `order` with the place of their last element, the longest prompt of the slice."""
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, start + len(rows) - 1


def _project(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [C, heads, L, W / heads] of a block's attention."""
    attention = block.attn
    count, length, width = x.shape
    heads = attention.num_heads
    joint = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = joint.view(count, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    return query, key, value


def _finish(block: Any, x: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a block after its attention has mixed the values."""
    mixed = mixed.transpose(1, 2).reshape(x.shape)
    x = x + block.ls_1(block.attn.out_proj(mixed))
    return x + block.ls_2(block.mlp(block.ln_2(x)))

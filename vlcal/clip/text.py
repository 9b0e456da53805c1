"""The text tower without waste: padding is cut, and a prefix that all prompts share runs once.

Under a causal mask a position never sees what follows it. So cutting every prompt after its end
token is exact, and a prefix that all prompts share (start token and context) needs to be run once
instead of once per class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlcal.clip.blocks import check_deep, refuses_parts, run_blocks
from vlcal.clip.heap import give_back
from vlcal.clip.packing import Shared, no_prefix, pack, prefix_layers, run_packed

CHUNK = 256
REMEMBERED = 16384  # texts whose tokens are kept at hand
KEPT = 20  # numbers kept for the backward pass, at most, per token, block and unit of width


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
        self._remembered: dict[str, Tensor] = {}

    @property
    def width(self) -> int:
        """W, the width of token embeddings and prompts."""
        self._need_prompts("TextTower.width")
        return self.source.token_embedding.weight.shape[1]

    @property
    def layers(self) -> int:
        """The number of transformer blocks."""
        self._need_prompts("TextTower.layers")
        return len(self._blocks)

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
        return refuses_parts(self._blocks)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [C, L] of texts, padded to the context length.

        Those of recent texts are remembered, as tokenizing 100 words takes longer than some steps
        of training. Long lists, such as vocabularies, are not.

        Raises:
            ValueError: a text needs more tokens than the context holds; nothing is truncated.
        """
        if isinstance(texts, str):
            raise ValueError("tokenize: texts must be a list of strings, got one string")
        texts = list(texts)
        if not 0 < len(texts) <= REMEMBERED // 8:
            return self._tokenize(texts)
        if len(self._remembered) > REMEMBERED:
            self._remembered.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._remembered]
        if new:
            self._remembered.update(zip(new, self._tokenize(new), strict=True))
        return torch.stack([self._remembered[text] for text in texts])

    def _tokenize(self, texts: list[str]) -> Tensor:
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

    def encode(
        self,
        embeddings: Tensor,
        end: Tensor,
        *,
        chunk: int = CHUNK,
        deep: Tensor | None = None,
        max_bytes: int | None = None,
    ) -> Tensor:
        """Text features [C, D], not normalized, of prompts given as embeddings.

        Positions after the end token are not computed; exact under the causal mask. A tower without
        one gets every position, so give it prompts padded as the tokenizer pads them.

        Args:
            embeddings: [C, L, W] without positions, L at most the context length.
            end: [C] position of the end token.
            chunk: prompts per pass.
            deep: as in `encode_with_prefix`; prompts then run to the longest end of their pass.
            max_bytes: as in `encode_with_prefix`, for all that prompts keep.
        """
        who, length = "TextTower.encode", embeddings.shape[1]
        self._need_prompts(who)
        self._check_length(who, length, str(length))
        self._check_deep(who, deep, length - 1)
        if not len(end):
            return embeddings.new_zeros(0, self._output_width)
        if deep is None and self.refuses_prefix() is None:
            run, lengths = partial(self._packed, no_prefix(self._blocks, embeddings), 0), end + 1
        else:
            run, lengths = partial(self._whole, deep), torch.full_like(end, length)
        chunk, again = self._plan(who, lengths, 1, chunk, max_bytes)
        return self._in_chunks(run, embeddings, end, chunk, again)[0]

    def encode_with_prefix(
        self,
        prefix: Tensor,
        suffix: Tensor,
        end: Tensor,
        *,
        chunk: int = CHUNK,
        deep: Tensor | None = None,
        max_bytes: int | None = None,
    ) -> Tensor:
        """Text features [C, D], not normalized, of prompts that begin with the same embeddings.

        Equal to `encode` of the concatenations up to rounding, forward and backward; the prefix
        runs once per layer.

        Args:
            prefix: [P, W] shared by all prompts (start token and context), P at least 1; or
                [B, P, W], one for each of B images.
            suffix: the rest of each prompt, P + S at most the context length: [C, S, W], or
                [C, S] token ids, whose embeddings then exist for one pass only.
            end: [C] position of the end token in the suffix.
            chunk: prompts per pass.
            deep: [layers, n, W] vectors that replace positions 1..n, behind the start token, at the
                input of the second block, the third, ...; n is less than P.
            max_bytes: for what the prompts behind the prefix keep for the backward pass, by an
                upper estimate. Where all of them need more, passes are made small enough and run
                again in the backward pass. None keeps everything.

        Returns:
            [C, D], or [B, C, D] for B prefixes.

        Raises:
            NotImplementedError: the tower cannot share a prefix; `refuses_prefix` says why. Use
                `encode` there.
        """
        who = "TextTower.encode_with_prefix"
        if (why := self.refuses_prefix()) is not None:
            raise NotImplementedError(f"{who}: cannot run here, {why}")
        start, length = prefix.shape[-2], suffix.shape[1]
        self._check_length(who, start + length, f"{start} + {length}")
        self._check_deep(who, deep, start - 1)
        if not len(end) or not len(prefix):
            return prefix.new_zeros(*prefix.shape[:-2], len(end), self._output_width)
        x = prefix + self.source.positional_embedding[:start].to(prefix.dtype)
        x = x if x.ndim == 3 else x[None]
        layers = prefix_layers(self._blocks, x, deep)
        chunk, again = self._plan(who, end + 1, len(x), chunk, max_bytes)
        # a pass takes several images with few classes, or a part of one image's many classes
        images, suffix = max(1, chunk // max(len(end), 1)), suffix.to(prefix.device)
        features = []
        for i in range(0, len(x), images):
            part = [(key[i : i + images], value[i : i + images]) for key, value in layers]
            run = partial(self._packed, part, start)
            features.append(self._in_chunks(run, suffix, end, chunk, again))
        return features[0][0] if prefix.ndim == 2 else torch.cat(features)

    def common_prefix(self, tokens: Tensor, end: Tensor) -> int:
        """How many leading tokens all texts share, so that every end token stays outside."""
        if not len(tokens):
            return 1
        same = (tokens == tokens[0]).all(0)
        return min(int(same.long().cumprod(0).sum()), int(end.min()))

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

    @property
    def _output_width(self) -> int:
        projection = self.source.text_projection
        if isinstance(projection, nn.Linear):
            return projection.out_features
        return self.width if projection is None else projection.shape[1]

    def _need_prompts(self, who: str) -> None:
        if (why := self.refuses_prompts()) is not None:
            raise NotImplementedError(f"{who}: prompts cannot be given as embeddings, {why}")

    def _check_length(self, who: str, length: int, given: str) -> None:
        if length > self.context_length:
            raise ValueError(
                f"{who}: prompts must have at most {self.context_length} positions, got {given}"
            )

    def _check_deep(self, who: str, deep: Tensor | None, room: int) -> None:
        check_deep(who, deep, len(self._blocks), self.width, room)

    def _plan(
        self, who: str, lengths: Tensor, images: int, chunk: int, max_bytes: int | None
    ) -> tuple[int, bool]:
        """Prompts per pass, and whether passes are run again in the backward pass."""
        if max_bytes is None or not torch.is_grad_enabled():
            return chunk, False
        weights = self.source.token_embedding.weight
        each = KEPT * len(self._blocks) * weights.shape[1] * weights.element_size()
        if each * images * int(lengths.sum()) <= max_bytes:
            return chunk, False
        longest = each * int(lengths.max())
        if longest > max_bytes:
            raise ValueError(
                f"{who}: max_bytes must be at least {longest} (the longest prompt), got {max_bytes}"
            )
        return min(chunk, max_bytes // longest), True

    def _in_chunks(
        self, run: Callable[..., Tensor], prompts: Tensor, end: Tensor, chunk: int, again: bool
    ) -> Tensor:
        """Features [B, C, D] of sorted prompts in passes, in the given order."""
        end = end.cpu()
        order = end.argsort(stable=True)

        def one(rows: Tensor) -> Tensor:
            if again:
                give_back(prompts.device)  # what the pass before, or its backward pass, has freed
            ends = end[rows]
            length = int(ends.max()) + 1 if self.causal else prompts.shape[1]
            return run(prompts[rows.to(prompts.device), :length], ends)

        features = [
            checkpoint(one, rows, use_reentrant=False, preserve_rng_state=False)
            if again
            else one(rows)
            for rows in order.split(chunk)
        ]
        back = order.argsort().to(prompts.device)
        return torch.cat(features, 1).index_select(1, back)

    def _packed(self, layers: list[Shared], start: int, prompts: Tensor, end: Tensor) -> Tensor:
        """Features [B, C, D] of prompts behind B prefixes of `start` positions."""
        packing = pack(end, prompts.device)
        x = prompts.flatten(0, 1).index_select(0, packing.places)
        x = x if x.is_floating_point() else self.embed(x)
        positions = self.source.positional_embedding[start + packing.places % prompts.shape[1]]
        x = (x + positions.to(x.dtype))[None]
        return self._read_out(run_packed(self._blocks, layers, x, packing))

    def _whole(self, deep: Tensor | None, embeddings: Tensor, end: Tensor) -> Tensor:
        """Features [1, C, D] of prompts that run with all their positions."""
        length = embeddings.shape[1]
        x = embeddings + self.source.positional_embedding[:length].to(embeddings.dtype)
        mask = self.source.attn_mask[:length, :length].to(x.dtype) if self.causal else None
        x = run_blocks(self._blocks, x, mask, deep, 1)
        return self._read_out(x[None, torch.arange(len(x)), end])

    def _read_out(self, x: Tensor) -> Tensor:
        # the final norm works per position, so only the end positions need it
        x = self.source.ln_final(x)
        projection = self.source.text_projection
        if isinstance(projection, nn.Linear):
            return projection(x)
        return x if projection is None else x @ projection

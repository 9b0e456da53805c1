"""The learnable parts several tuners share: context tokens around class names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlcal.clip import TextTower

POSITIONS = ("end", "middle", "front")
BLOCK = 4096

_log = logging.getLogger("vlcal")


class Prompts(NamedTuple):
    """Tokenized "<name>.": tokens [C, S], position of the end token [C], tokens per name [C]."""

    tokens: Tensor
    end: Tensor
    name_length: Tensor


class DeepPrompts(nn.Module):
    """Learned vectors that replace prompts at the input of every block after the first.

    Args:
        depth: prompted blocks as the papers count them, the first one included: its vectors are
            the context, so depth - 1 sets are held here.
        n_ctx: vectors per block.
        width: of the tower.
        generator: draws the vectors from N(0, 0.02^2).
    """

    def __init__(self, depth: int, n_ctx: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        if depth < 1 or n_ctx < 1:
            raise ValueError(
                f"DeepPrompts: depth and n_ctx must be at least 1, got {depth} and {n_ctx}"
            )
        drawn = torch.empty(depth - 1, n_ctx, width).normal_(0, 0.02, generator=generator)
        self.vectors = nn.Parameter(drawn)

    def forward(self) -> Tensor:
        """The vectors [depth - 1, n_ctx, width], second block first."""
        return self.vectors


class ContextTokens(nn.Module):
    """Learned vectors among the tokens of "<name>.", in the place of words such as "a photo of a".

    One context in front of all names is run through the tower once, with whatever tokens all names
    begin with; other contexts, and all on towers that are not causal, run once per name. The log
    says so (a warning, unless the method wants it), and `refuses_prefix` says why.

    Args:
        tower: the text tower that reads the prompts.
        ctx: initial context [n_ctx, W], or [C, n_ctx, W] for one context per class.
        position: of the class name: "end" (context, name), "front" (name, context) or "middle"
            (half of the context, rounded down, then the name).
        deep: gives per-layer prompts [layers, n, W], n <= n_ctx, that replace the first n context
            vectors in later blocks; for position "end".
        max_bytes: for what one list of words keeps for the backward pass, as in
            `TextTower.encode_with_prefix`; what does not fit is computed again there. None keeps
            everything.
        who: starts messages.
        by_design: whether position and shape of the context are the method's and not the user's.
    """

    def __init__(
        self,
        tower: TextTower,
        ctx: Tensor,
        position: str = "end",
        deep: nn.Module | None = None,
        *,
        max_bytes: int | None = None,
        who: str = "ContextTokens",
        by_design: bool = False,
    ) -> None:
        super().__init__()
        if position not in POSITIONS:
            raise ValueError(
                f"{who}: class_token_position must be one of {', '.join(POSITIONS)}, "
                f"got {position!r}"
            )
        if deep is not None and position != "end":
            raise ValueError(
                f"{who}: deep prompts replace the context in front of the name, so "
                f"class_token_position must be end, got {position!r}"
            )
        self.tower = tower
        self.position = position
        self.ctx = nn.Parameter(ctx.detach().float().clone())
        self.deep = deep
        self.max_bytes = share(who, max_bytes, 1)
        self.who = who
        if (why := self.refuses_prefix()) is not None:
            wanted = by_design and tower.refuses_prefix() is None
            _say_once(logging.INFO if wanted else logging.WARNING, who, why)

    def refuses_prefix(self) -> str | None:
        """Why the names do not share what stands in front of them; None if they do."""
        if self.position != "end":
            return f"class_token_position is {self.position!r}, so context follows the name"
        if self.ctx.ndim == 3:
            return "every class has its own context"
        return self.tower.refuses_prefix()

    @property
    def n_ctx(self) -> int:
        """The number of context vectors of one prompt."""
        return self.ctx.shape[-2]

    def tokenize(self, names: Sequence[str]) -> Prompts:
        """What can be computed before the context is known; underscores in names become spaces.

        Raises:
            ValueError: a name and the context together do not fit the tower.
        """
        if isinstance(names, str):
            raise ValueError(f"{self.who}: words must be a list of strings, got one string")
        plain = [name.replace("_", " ") for name in names]
        tower, room = self.tower, self.tower.context_length - self.n_ctx
        tokens = tower.tokenize([f"{name}." for name in plain])
        end = tower.end(tokens)
        for row in (end >= room).nonzero().flatten().tolist():
            raise ValueError(
                f"{self.who}: {names[row]!r} needs {int(end[row]) + 1} tokens beside "
                f"{self.n_ctx} of context, but the tower has {tower.context_length}; "
                "shorten the name or use a smaller n_ctx"
            )
        length = int(end.max()) + 1 if tower.causal and len(plain) else room
        return Prompts(tokens[:, :length], end, tower.end(tower.tokenize(plain)) - 1)

    def forward(self, prompts: Prompts, shift: Tensor | None = None) -> Tensor:
        """Text features, not normalized, of tokenized names under the current context.

        Args:
            prompts: of C names.
            shift: added to the context for each of B images: [B, W] to all its vectors alike, or
                [B, n_ctx, W].

        Returns:
            [C, D], or [B, C, D] with a shift.
        """
        ctx = self.ctx if shift is None else self._shifted(shift)
        deep = None if self.deep is None else self._deep_prompts(self.deep)
        if self.refuses_prefix() is None:
            return self._encode_shared(prompts, ctx, deep)
        if shift is None:
            return self._encode_each(prompts, ctx, deep)
        return torch.stack([self._encode_each(prompts, one, deep) for one in ctx])

    def _shifted(self, shift: Tensor) -> Tensor:
        wanted = (len(shift), self.n_ctx, self.ctx.shape[-1])
        per_image = shift[:, None] if shift.ndim == 2 else shift
        if self.ctx.ndim == 3 or per_image.shape not in (wanted, (wanted[0], 1, wanted[2])):
            raise ValueError(
                f"{self.who}: shift must be [B, {wanted[2]}] or [B, {wanted[1]}, {wanted[2]}] "
                f"on one context for all classes, got {tuple(shift.shape)} "
                f"on {tuple(self.ctx.shape)}"
            )
        return self.ctx + per_image

    def _deep_prompts(self, deep: nn.Module) -> Tensor:
        prompts = deep()
        if prompts.shape[-2] > self.n_ctx:
            raise ValueError(
                f"{self.who}: deep must have at most {self.n_ctx} prompts per layer (the "
                f"context it replaces), got {prompts.shape[-2]}"
            )
        return prompts

    def _encode_shared(self, prompts: Prompts, ctx: Tensor, deep: Tensor | None) -> Tensor:
        common = self.tower.common_prefix(prompts.tokens, prompts.end)
        start = prompts.tokens.new_tensor([self.tower.tokenizer.sot_token_id])
        words = self.tower.embed(prompts.tokens[:1, 1:common].flatten())
        parts = [self.tower.embed(start), ctx.to(words.dtype), words]
        images = ctx.shape[:-2]
        prefix = torch.cat([part.expand(*images, *part.shape[-2:]) for part in parts], -2)
        return self.tower.encode_with_prefix(
            prefix,
            prompts.tokens[:, common:],
            prompts.end - common,
            deep=deep,
            max_bytes=self.max_bytes,
        )

    def _encode_each(self, prompts: Prompts, ctx: Tensor, deep: Tensor | None) -> Tensor:
        # blocks bound the memory of embeddings when a whole vocabulary is encoded
        starts = range(0, max(len(prompts.end), 1), BLOCK)
        parts = (slice(start, start + BLOCK) for start in starts)
        return torch.cat([self._encode_rows(prompts, ctx, deep, rows) for rows in parts])

    def _encode_rows(
        self, prompts: Prompts, ctx: Tensor, deep: Tensor | None, rows: slice
    ) -> Tensor:
        embeddings = self.tower.embed(prompts.tokens[rows])
        ctx = ctx if ctx.ndim == 2 else ctx[rows]
        ctx = ctx.to(embeddings.dtype).expand(len(embeddings), -1, -1)
        length = embeddings.shape[1] + self.n_ctx
        before = {"front": 0, "middle": self.n_ctx // 2, "end": self.n_ctx}[self.position]
        index = interleave(prompts.name_length[rows], length, self.n_ctx, before)
        index = index.to(embeddings.device)[..., None].expand(-1, -1, embeddings.shape[2])
        mixed = torch.cat([embeddings, ctx], 1).gather(1, index)
        end = prompts.end[rows] + self.n_ctx
        return self.tower.encode(mixed, end, deep=deep, max_bytes=self.max_bytes)


def share(who: str, max_bytes: int | None, parts: int) -> int | None:
    """An equal part of a bound on memory, or None where there is no bound."""
    if max_bytes is None:
        return None
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < parts:
        raise ValueError(
            f"{who}: max_bytes must be an integer of at least {parts}, got {max_bytes!r}"
        )
    return max_bytes // parts


@lru_cache
def _say_once(level: int, who: str, why: str) -> None:
    _log.log(level, "%s: every prompt runs whole, nothing is shared: %s", who, why)


def interleave(name_length: Tensor, length: int, n_ctx: int, before: int) -> Tensor:
    """Where each position [C, length] of a prompt comes from.

    The source is the tokens (start, name, rest) followed by the context: values below `length -
    n_ctx` are tokens, the others context. The prompt is start, `before` context vectors, name, the
    other context vectors, rest.

    >>> interleave(torch.tensor([1]), 6, 2, 1)  # start, first, name, second, rest
    tensor([[0, 4, 1, 5, 2, 3]])
    """
    place, name = torch.arange(length), name_length.cpu()[:, None]
    first_ctx = length - n_ctx
    index = torch.where(place <= name + n_ctx, first_ctx + place - name - 1, place - n_ctx)
    index = torch.where(place <= before + name, place - before, index)
    index = torch.where(place <= before, first_ctx + place - 1, index)
    return torch.where(place == 0, 0, index)


def initial_context(
    tower: TextTower, n_ctx: int | None, ctx_init: str | None, *, seed: int, copies: int | None
) -> Tensor:
    """The embeddings of `ctx_init`, or `n_ctx` vectors drawn from N(0, 0.02^2).

    [n_ctx, W], or [copies, n_ctx, W] if copies are given.

    Raises:
        ValueError: both are given and disagree, or neither makes a context.
        NotImplementedError: the tower cannot read learned context; the message says why.
    """
    if (why := refuses_context(tower)) is not None:
        raise NotImplementedError(f"learned context is not possible with this model: {why}")
    if ctx_init is not None:
        tokens = tower.tokenize([ctx_init.replace("_", " ")])
        ctx = tower.embed(tokens)[0, 1 : int(tower.end(tokens)[0])]
        if n_ctx not in (None, len(ctx)):
            raise ValueError(
                f"n_ctx must be {len(ctx)} for ctx_init {ctx_init!r} (its tokens), got {n_ctx}; "
                "leave one of them out"
            )
        ctx = ctx if copies is None else ctx.expand(copies, -1, -1)
    else:
        n_ctx = 16 if n_ctx is None else n_ctx
        shape = (n_ctx, tower.width) if copies is None else (copies, n_ctx, tower.width)
        ctx = torch.empty(shape).normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
    if not 1 <= ctx.shape[-2] <= tower.context_length - 3:
        raise ValueError(
            f"n_ctx must be in 1..{tower.context_length - 3} (start, name and end need room), "
            f"got {ctx.shape[-2]}"
        )
    return ctx.to(tower.embed(torch.zeros(1, dtype=torch.int64)).device)


def refuses_context(tower: TextTower) -> str | None:
    """Why prompts with learned context cannot be built for this tower; None if they can."""
    if not hasattr(tower.tokenizer, "sot_token_id"):
        return "its tokenizer has no start token"
    return tower.refuses_prompts()

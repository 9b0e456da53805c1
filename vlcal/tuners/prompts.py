"""The learnable parts several tuners share: context tokens around class names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlcal.clip import TextTower

POSITIONS = ("end", "middle", "front")
BLOCK = 4096


class Prompts(NamedTuple):
    """Tokenized "<name>.": tokens [C, S], position of the end token [C], tokens per name [C]."""

    tokens: Tensor
    end: Tensor
    name_length: Tensor


class ContextTokens(nn.Module):
    """Learned vectors among the tokens of "<name>.", in the place of words such as "a photo of a".

    Args:
        tower: the text tower that reads the prompts.
        ctx: initial context [n_ctx, W], or [C, n_ctx, W] for one context per class.
        position: of the class name: "end" (context, name), "front" (name, context) or "middle"
            (half of the context, rounded down, then the name).
    """

    def __init__(self, tower: TextTower, ctx: Tensor, position: str = "end") -> None:
        super().__init__()
        if position not in POSITIONS:
            raise ValueError(
                f"ContextTokens: class_token_position must be one of {', '.join(POSITIONS)}, "
                f"got {position!r}"
            )
        self.tower = tower
        self.position = position
        self.ctx = nn.Parameter(ctx.detach().float().clone())

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
            raise ValueError("ContextTokens: words must be a list of strings, got one string")
        plain = [name.replace("_", " ") for name in names]
        tower, room = self.tower, self.tower.context_length - self.n_ctx
        tokens = tower.tokenize([f"{name}." for name in plain])
        end = tower.end(tokens)
        for row in (end >= room).nonzero().flatten().tolist():
            raise ValueError(
                f"ContextTokens: {names[row]!r} needs {int(end[row]) + 1} tokens beside "
                f"{self.n_ctx} of context, but the tower has {tower.context_length}; "
                "shorten the name or use a smaller n_ctx"
            )
        length = int(end.max()) + 1 if tower.causal and len(plain) else room
        return Prompts(tokens[:, :length], end, tower.end(tower.tokenize(plain)) - 1)

    def forward(self, prompts: Prompts) -> Tensor:
        """Text features [C, D], not normalized, of tokenized names under the current context.

        One context in front of all names is run through the tower once; other contexts once per
        class.
        """
        count = len(prompts.end)
        shared = (
            self.position == "end" and self.ctx.ndim == 2 and self.tower.refuses_prefix() is None
        )
        encode = self._encode_shared if shared else self._encode_each
        # blocks bound the memory of embeddings when a whole vocabulary is encoded
        starts = range(0, max(count, 1), BLOCK)
        return torch.cat([encode(prompts, slice(start, start + BLOCK)) for start in starts])

    def _encode_shared(self, prompts: Prompts, rows: slice) -> Tensor:
        embeddings = self.tower.embed(prompts.tokens[rows])
        start = self.tower.embed(prompts.tokens.new_full((1,), self.tower.tokenizer.sot_token_id))
        prefix = torch.cat([start, self.ctx.to(embeddings.dtype)])
        return self.tower.encode_with_prefix(prefix, embeddings[:, 1:], prompts.end[rows] - 1)

    def _encode_each(self, prompts: Prompts, rows: slice) -> Tensor:
        embeddings = self.tower.embed(prompts.tokens[rows])
        ctx = self.ctx if self.ctx.ndim == 2 else self.ctx[rows]
        ctx = ctx.to(embeddings.dtype).expand(len(embeddings), -1, -1)
        length = embeddings.shape[1] + self.n_ctx
        before = {"front": 0, "middle": self.n_ctx // 2, "end": self.n_ctx}[self.position]
        index = interleave(prompts.name_length[rows], length, self.n_ctx, before)
        index = index.to(embeddings.device)[..., None].expand(-1, -1, embeddings.shape[2])
        mixed = torch.cat([embeddings, ctx], 1).gather(1, index)
        return self.tower.encode(mixed, prompts.end[rows] + self.n_ctx)


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

"""Which words of a vocabulary are outliers for some classes: encoded, filtered, ranked."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlcal import ops
from vlcal.clip import CLIP, unit
from vlcal.data.cache import cached_features, feature_key
from vlcal.regularizers.base import Setup, check_learned
from vlcal.types import ClassSet

RANKS = ("mean", "max", "top", "far", "random", "oracle")
EXCLUDE = ("names", "words")
SHARD = 4096
_log = logging.getLogger("vlcal")


def word_features(
    clip: CLIP,
    words: Sequence[str],
    template: str,
    *,
    cache: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Unit zero-shot features [V, D] of a vocabulary, float32 on the CPU, from the feature cache.

    They are computed once per model, template and list of words, in shards: an interrupted
    computation goes on behind its last shard. A word that does not fit the model's context in this
    template has a row of zeros.

    Args:
        clip: the frozen model.
        words: V of them.
        template: a prompt with exactly one `{}`.
        cache: folder of the caches; by default $VLCAL_CACHE, else the platform's.
        progress: called with words done and V after every shard.
    """
    prompts = ClassSet(tuple(words), template).prompts()
    return cached_features(
        cache,
        feature_key(clip.fingerprint(), {}, prompts=prompts) | {"too_long": "zeros"},
        len(prompts),
        clip.embed_dim,
        lambda rows: _encode(clip, prompts[rows]),
        shard_rows=SHARD,
        progress=progress,
    )


@torch.no_grad()
def _encode(clip: CLIP, prompts: list[str]) -> Tensor:
    fits = fitting(clip, prompts)
    features = torch.zeros(len(prompts), clip.embed_dim)
    if bool(fits.any()):
        kept = [prompts[row] for row in fits.nonzero().flatten().tolist()]
        with torch.autocast(clip.device.type, enabled=False):
            features[fits] = _encode_fitting(clip, kept).float().cpu()
    return features


def _encode_fitting(clip: CLIP, prompts: list[str]) -> Tensor:
    text = clip.text
    if text.refuses_prefix() is not None:
        return clip.encode_text(prompts)
    tokens = text.tokenize(prompts)
    end = text.end(tokens)
    same = int((tokens == tokens[0]).all(0).int().cumprod(0).sum())
    # what all prompts begin with runs once; every prompt keeps a position of its own
    shared = min(same, int(end.min()))
    tokens = tokens.to(clip.device)
    prefix = text.embed(tokens[0, :shared])
    suffix = text.embed(tokens[:, shared : int(end.max()) + 1])
    return unit(text.encode_with_prefix(prefix, suffix, end - shared))


def fitting(clip: CLIP, prompts: Sequence[str]) -> Tensor:
    """Which prompts [V] fit the model's context; the others could only be encoded truncated."""
    tokens = clip.text.tokenizer(list(prompts))
    fits = torch.ones(len(tokens), dtype=torch.bool)
    for row in (tokens[:, -1] != 0).nonzero().flatten().tolist():
        longer = clip.text.tokenizer([prompts[row]], clip.text.context_length + 1)
        fits[row] = torch.equal(longer[0, :-1], tokens[row])
    return fits


def plain(word: str) -> str:
    """A word as names are compared: case folded, every run of other signs one space.

    >>> plain("Jack-o'-Lantern"), plain("jack_o_lantern")
    ('jack o lantern', 'jack o lantern')
    """
    return " ".join(re.findall(r"\w+", word.replace("_", " ").casefold()))


def distinct(words: Sequence[str], names: Sequence[str], exclude: str = "names") -> Tensor:
    """Which words [V] are none of the names.

    Args:
        words: V of them.
        names: what they must differ from, all compared as `plain` text.
        exclude: "names" leaves out words equal to a name; "words" also those that contain a name as
            whole words ("cat" takes "wild cat" out, not "cattle").
    """
    taken = {plain(name) for name in names} - {""}
    longest = max((name.count(" ") + 1 for name in taken), default=0)

    def is_taken(word: str) -> bool:
        parts = plain(word).split()
        if exclude == "names":
            return " ".join(parts) in taken
        return any(
            " ".join(parts[start : start + size]) in taken
            for size in range(1, min(longest, len(parts)) + 1)
            for start in range(len(parts) - size + 1)
        )

    return torch.tensor([not is_taken(word) for word in words], dtype=torch.bool)


def ranked(
    features: Tensor, anchors: Tensor, k: int, rank: str, *, top_m: int, generator: torch.Generator
) -> Tensor:
    """Rows [k] of a vocabulary [V, D] in an order given by their cosines with anchors [C, D].

    Args:
        features: unit rows.
        anchors: unit rows, at least one.
        k: at most V.
        rank: "mean", "max" or "top" (mean of the `top_m` largest) cosine, highest first; "far":
            lowest mean first; "random": drawn.
        top_m: for "top"; all anchors if there are fewer.
        generator: for "random".
    """
    if rank == "random":
        return torch.randperm(len(features), generator=generator)[:k]
    if rank == "top":
        size = min(top_m, len(anchors))
        wide = anchors.double().T
        parts = [
            (block.double() @ wide).topk(size).values.mean(-1) for block in features.split(SHARD)
        ]
        return torch.cat(parts).argsort(descending=True, stable=True)[:k]
    towards = -anchors if rank == "far" else anchors
    reduce = "max" if rank == "max" else "mean"
    return ops.rank_vocabulary(features, towards, k, reduce=reduce).index


@torch.enable_grad()
def check_open(who: str, setup: Setup) -> None:
    """Refuse a tuner that learns nothing about a word that is none of its classes.

    Raises:
        NotImplementedError: with the tuner's own sentence if it has one.
    """
    check_learned(who, setup)
    try:
        features = setup.encode_text(["no class"])
    except (NotImplementedError, ValueError) as error:
        raise NotImplementedError(f"{who}: needs features of any word, but {error}") from error
    check_learned(who, setup._replace(learns_text=features.requires_grad))


@torch.no_grad()
def encodable(setup: Setup, words: list[str]) -> list[int]:
    """Rows of the words that have no more tokens than the longest that the tuner can encode."""
    if not words:
        return []
    lengths = (setup.clip.text.tokenizer([f"{word}." for word in words]) != 0).sum(-1)
    for length in lengths.unique().flip(0).tolist():
        try:
            setup.encode_text([words[int((lengths == length).nonzero()[0])]])
        except ValueError as error:
            # the tuner's sentence about a prompt that is too long; a shorter word may fit
            _log.debug("encodable: %s", error)
        else:
            return (lengths <= length).nonzero().flatten().tolist()
    return []

"""DOR: words that are no class keep their zero-shot features while the prompt is tuned.

Wang et al., "Understanding and Mitigating Miscalibration in Prompt Tuning for Vision-Language
Models", ICML 2025 (PMLR 267:63467-63489).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlcal._files import sha256_of
from vlcal.data.vocabulary import nouns
from vlcal.regularizers.base import EncodeText, Regularizer, Setup, zero_shot_features
from vlcal.regularizers.knowledge import inconsistency
from vlcal.regularizers.outliers import (
    EXCLUDE,
    RANKS,
    check_open,
    distinct,
    encodable,
    ranked,
    word_features,
)
from vlcal.types import ClassSet, Outputs

PHRASE = "a photo of a {}."
SAMPLING = ("cursor", "independent")
_log = logging.getLogger("vlcal")


@dataclass(eq=False)
class DOR(Regularizer):
    """weight * (1 - mean_b cos(w(o_b), u(o_b))) over outlier words o_b, other ones in every step.

    w is the tuned feature of a word, u that of the frozen model in `template`. Outliers are chosen
    once, by the cosines of u with the zero-shot features of the classes in the same template.

    A class name and a vocabulary word are the same if they agree without case, punctuation, hyphens
    and underscores; such words, and words too long for one of the two prompts, are no outliers.

    Args:
        vocabulary: a text file with a word per line, or a list of words; WordNet's nouns by
            default.
        top_k: outliers; all candidates if there are fewer.
        per_step: of them in each step, at most all; as many as classes by default.
        weight: of the term; the paper's is 8 with CoOp and 2 with other tuners.
        rank: "mean" keeps the words with the highest mean cosine, "max" the highest largest cosine,
            "top" the highest mean over the `top_m` nearest classes, "far" the lowest mean cosine,
            "random" draws words, "oracle" takes `new_names`.
        top_m: classes averaged over by "top".
        sampling: "cursor" walks through shuffled outliers, a word once per pass (what is left when
            a pass cannot fill a step waits for another one); "independent" draws each step anew. No
            word is twice in a step.
        template: of the zero-shot features, with exactly one `{}`, or "classes" for that of the
            classes. By default the model's own template where it has one (the bundled model never
            saw a photo, and tuning would follow words held in a place that means nothing), else the
            paper's "a photo of a {}."
        exclude: "names" leaves out words that are class names, "words" also those that contain one.
        new_names: names of the new classes, for `exclude_new` and "oracle".
        exclude_new: leave out their names too.
        cache: folder of the vocabulary's features; by default $VLCAL_CACHE, else the platform's.
    """

    name: ClassVar[str] = "dor"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "coop": {"weight": 8.0},
        "*": {"weight": 2.0},
    }

    vocabulary: str | Path | Sequence[str] | None = None
    top_k: int = 5000
    per_step: int | None = None
    weight: float = 8.0
    rank: str = "mean"
    top_m: int = 5
    sampling: str = "cursor"
    template: str | None = None
    exclude: str = "names"
    new_names: Sequence[str] = ()
    exclude_new: bool = False
    cache: str | None = field(default=None, repr=False)

    generator: torch.Generator = field(init=False, repr=False)
    words_: list[str] = field(init=False, repr=False)
    features_: Tensor = field(init=False, repr=False)
    per_step_: int = field(init=False, repr=False)
    order_: Tensor = field(init=False, repr=False)
    position_: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("top_k", "per_step", "top_m"):
            value = getattr(self, name)
            if not (name == "per_step" and value is None) and not _is_count(value):
                raise ValueError(f"dor: {name} must be an integer of at least 1, got {value!r}")
        if isinstance(self.weight, bool) or not 0 <= self.weight < math.inf:
            raise ValueError(f"dor: weight must be finite and not negative, got {self.weight!r}")
        for name, known in (("rank", RANKS), ("sampling", SAMPLING), ("exclude", EXCLUDE)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"dor: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if self.template not in (None, "classes"):
            ClassSet((), self.template)
        if (self.rank == "oracle" or self.exclude_new) and not self.new_names:
            raise ValueError("dor: new_names are needed for rank 'oracle' and for exclude_new")
        self.generator = torch.Generator()

    @cached_property
    def candidates(self) -> list[str]:
        """The vocabulary, each word once."""
        if self.vocabulary is None or isinstance(self.vocabulary, (str, Path)):
            return nouns(self.vocabulary)
        return list(dict.fromkeys(self.vocabulary))

    def identity(self) -> dict[str, Any]:
        """Name and arguments; the vocabulary by its content, new names only where they count."""
        words = self.candidates
        content = {"words": len(words), "sha256": sha256_of(words)}
        used = self.rank == "oracle" or self.exclude_new
        names = list(self.new_names) if used else []
        return super().identity() | {"vocabulary": content, "new_names": names}

    # -- before the first step

    def check(self, setup: Setup) -> None:
        """Refuse a tuner that cannot encode words beyond its classes."""
        check_open(self.name, setup)

    def prepare(self, setup: Setup) -> None:
        """Choose the outliers for these classes, and start a new pass through them."""
        self.check(setup)
        template = self.template or setup.clip.template or PHRASE
        if template == "classes":
            template = setup.classes.template
        words, features = self._outliers(setup, template)
        keep = encodable(setup, words)
        if len(keep) < len(words):
            _log.info("dor: %d words do not fit the prompt", len(words) - len(keep))
        if not keep:
            raise ValueError("dor: no outlier is left, every word is a class name or too long")
        self.words_ = [words[row] for row in keep]
        self.features_ = features[keep].to(setup.clip.device)
        wanted = len(setup.classes) if self.per_step is None else self.per_step
        self.per_step_ = min(wanted, len(self.words_))
        self.order_, self.position_ = torch.zeros(0, dtype=torch.int64), 0

    def _outliers(self, setup: Setup, template: str) -> tuple[list[str], Tensor]:
        """Words and their zero-shot features, in the order of the ranking."""
        clip, names = setup.clip, setup.classes.names
        if self.rank == "oracle":
            words = list(self.new_names)
            return words, zero_shot_features(clip, ClassSet(tuple(words), template)).cpu()
        words = self.candidates
        features = word_features(clip, words, template, cache=self.cache, progress=self.progress)
        taken = (*names, *self.new_names) if self.exclude_new else names
        free = distinct(words, taken, self.exclude) & features.any(-1)
        rows = free.nonzero().flatten()
        if not len(rows):
            return [], features[rows]
        anchors = zero_shot_features(clip, ClassSet(names, template)).float().cpu()
        size = min(self.top_k, len(rows))
        best = ranked(
            features[rows], anchors, size, self.rank, top_m=self.top_m, generator=self.generator
        )
        rows = rows[best]
        return [words[row] for row in rows.tolist()], features[rows]

    # -- in every step

    def sample(self) -> Tensor:
        """Rows of `words_` for the next step."""
        count, total = self.per_step_, len(self.words_)
        if self.sampling == "independent":
            return torch.randperm(total, generator=self.generator)[:count]
        if self.position_ + count > len(self.order_):
            self.order_, self.position_ = torch.randperm(total, generator=self.generator), 0
        self.position_ += count
        return self.order_[self.position_ - count : self.position_]

    def penalty(self, out: Outputs, encode_text: EncodeText) -> Tensor:
        """The weighted term of this step, over new words."""
        rows = self.sample()
        tuned = encode_text([self.words_[row] for row in rows.tolist()])
        return self.weight * inconsistency(tuned, self.features_[rows.to(self.features_.device)])

    def state_dict(self) -> dict[str, Tensor]:
        """The running pass through the outliers."""
        return {"order": self.order_, "position": torch.tensor(self.position_)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on in a pass."""
        self.order_, self.position_ = state["order"], int(state["position"])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1

"""Tuning methods: TUNERS is the list, RECIPES the published ways to run each."""

from __future__ import annotations

import importlib

from vlcal.tuners.base import Progress, Recipe, Setting, Tuner, cosine_logits
from vlcal.tuners.cocoop import CoCoOp
from vlcal.tuners.coop import CoOp
from vlcal.tuners.features import FeatureBatches, encode_views
from vlcal.tuners.ivlp import IVLP
from vlcal.tuners.kgcoop import KgCoOp
from vlcal.tuners.maple import MaPLe
from vlcal.tuners.proda import ProDA
from vlcal.tuners.prograd import ProGrad
from vlcal.tuners.promptsrc import PromptSRC
from vlcal.tuners.saving import check_options, load_tuner, save_tuner
from vlcal.tuners.vpt import VPT
from vlcal.tuners.zero_shot import ZeroShot

TUNERS: tuple[type[Tuner], ...] = (
    ZeroShot,
    CoOp,
    CoCoOp,
    ProDA,
    VPT,
    KgCoOp,
    IVLP,
    MaPLe,
    ProGrad,
    PromptSRC,
)
RECIPES: dict[str, dict[str, Setting]] = {cls.name: dict(cls.settings) for cls in TUNERS}


def by_name(name: str) -> type[Tuner]:
    """The tuner of this name, or of a dotted path `package.module:Class`."""
    known = {cls.name: cls for cls in TUNERS}
    if name in known:
        return known[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(
            f"by_name: unknown tuner {name!r}; known: {', '.join(known)}, or package.module:Class"
        )
    cls = getattr(importlib.import_module(module), attribute, None)
    if not (isinstance(cls, type) and issubclass(cls, Tuner)):
        raise ValueError(f"by_name: {name} is not a Tuner")
    return cls


__all__ = [
    "IVLP",
    "RECIPES",
    "TUNERS",
    "VPT",
    "CoCoOp",
    "CoOp",
    "FeatureBatches",
    "KgCoOp",
    "MaPLe",
    "ProDA",
    "ProGrad",
    "Progress",
    "PromptSRC",
    "Recipe",
    "Setting",
    "Tuner",
    "ZeroShot",
    "by_name",
    "check_options",
    "cosine_logits",
    "encode_views",
    "load_tuner",
    "save_tuner",
]

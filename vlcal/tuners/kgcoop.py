"""KgCoOp: learned context whose class features stay near those of the zero-shot prompts.

Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from vlcal.clip import CLIP
from vlcal.regularizers.knowledge import inconsistency
from vlcal.tuners.base import Recipe, Setting
from vlcal.tuners.coop import CoOp
from vlcal.tuners.targets import FrozenText
from vlcal.types import ClassSet, Outputs


class KgCoOp(CoOp):
    """CoOp with a pull towards zero-shot features.

    The loss is cross-entropy + weight * (1 - mean_c cos(w_c, u_c)): w_c are the tuned features of
    the classes, u_c the frozen model's features of the same classes in `template`.

    Args:
        clip: the frozen model.
        classes: the classes to learn from.
        n_ctx: context vectors; the number of tokens of `ctx_init`, 16 without it.
        ctx_init: a phrase to start from; None draws from N(0, 0.02^2).
        class_token_position: of the name: "end", "middle" or "front".
        class_specific: learn one context per class; such a tuner cannot serve other classes.
        weight: of the pull.
        template: of the features pulled towards; that of the classes by default.
        seed: of a random initial context.
        max_bytes: see `ContextTokens`; changes no result beyond rounding, and is not saved.
    """

    name: ClassVar[str] = "kgcoop"
    recipe: ClassVar[Recipe] = Recipe(epochs=100, lr=0.002, batch_size=128)
    settings: ClassVar[Mapping[str, Setting]] = {
        # the configuration says 16 vectors, but the phrase makes them 4
        "dac2024": Setting({"ctx_init": "a photo of a", "weight": 8.0}, Recipe(200, 0.002, 32)),
        "upstream": Setting({"ctx_init": "a photo of a", "weight": 8.0}, recipe),
    }

    def __init__(
        self,
        clip: CLIP,
        classes: ClassSet,
        *,
        n_ctx: int | None = None,
        ctx_init: str | None = "a photo of a",
        class_token_position: str = "end",
        class_specific: bool = False,
        weight: float = 8.0,
        template: str | None = None,
        seed: int = 0,
        max_bytes: int | None = None,
    ) -> None:
        super().__init__(
            clip,
            classes,
            n_ctx=n_ctx,
            ctx_init=ctx_init,
            class_token_position=class_token_position,
            class_specific=class_specific,
            seed=seed,
            max_bytes=max_bytes,
        )
        self.weight = weight
        self.target = FrozenText(clip, [template or classes.template])
        self.hyperparameters |= {"weight": weight, "template": template}

    def losses(self, out: Outputs, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and the weighted distance to the zero-shot features."""
        distance = inconsistency(out.text_features, self.target(self.classes.names))
        return super().losses(out, labels) | {"consistency": self.weight * distance}

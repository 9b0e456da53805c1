"""CoOp: learn the words around the class names.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from vlcal.clip import CLIP, unit
from vlcal.tuners.base import Recipe, Setting, Tuner
from vlcal.tuners.prompts import ContextTokens, initial_context
from vlcal.types import ClassSet


class CoOp(Tuner):
    """Context vectors shared by all classes (or one context per class), learned by cross-entropy.

    A prompt is "<context> <name>."; the template of the classes plays no role.

    Args:
        clip: the frozen model.
        classes: the classes to learn from; their order is the order of the labels.
        n_ctx: context vectors; 16, or the number of tokens of `ctx_init`.
        ctx_init: a phrase such as "a photo of a" to start from; None draws from N(0, 0.02^2).
        class_token_position: of the name: "end", "middle" or "front".
        class_specific: learn one context per class; such a tuner cannot serve other classes.
        seed: of the random initial context.
        max_bytes: see `ContextTokens`; changes no result beyond rounding, and is not saved.
    """

    name: ClassVar[str] = "coop"
    recipe: ClassVar[Recipe] = Recipe(epochs=200, lr=0.002, batch_size=32)
    settings: ClassVar[Mapping[str, Setting]] = {
        "dac2024": Setting({"n_ctx": 16, "ctx_init": None}, recipe),
        "upstream": Setting({"n_ctx": 4, "ctx_init": "a photo of a"}, recipe),
    }

    def __init__(
        self,
        clip: CLIP,
        classes: ClassSet,
        *,
        n_ctx: int | None = None,
        ctx_init: str | None = None,
        class_token_position: str = "end",
        class_specific: bool = False,
        seed: int = 0,
        max_bytes: int | None = None,
    ) -> None:
        copies = len(classes) if class_specific else None
        ctx = initial_context(clip.text, n_ctx, ctx_init, seed=seed, copies=copies)
        super().__init__(
            clip,
            classes,
            n_ctx=ctx.shape[-2],
            ctx_init=ctx_init,
            class_token_position=class_token_position,
            class_specific=class_specific,
            seed=seed,
        )
        self.context = ContextTokens(
            clip.text, ctx, class_token_position, max_bytes=max_bytes, who=self.name
        )
        self._owners = classes.names if class_specific else None
        self.set_classes(classes)

    def set_classes(self, classes: ClassSet) -> None:
        """Predict these classes from now on, with the learned context."""
        self._refuse_strangers(classes.names)
        super().set_classes(classes)
        self._prompts = self.context.tokenize(classes.names)

    def encode_text(self, words: Sequence[str]) -> Tensor:
        """Unit text features [W, D] of any words under the current context."""
        self._refuse_strangers(words)
        return unit(self.context(self.context.tokenize(words)))

    def class_features(self) -> Tensor:
        """Unit text features [C, D] of the classes under the current context."""
        return unit(self.context(self._prompts))

    def _refuse_strangers(self, words: Sequence[str]) -> None:
        if self._owners is not None and tuple(words) != self._owners:
            raise ValueError(
                f"{self.name}: a class-specific context belongs to its {len(self._owners)} "
                "training classes and cannot serve other words; train with class_specific=False"
            )

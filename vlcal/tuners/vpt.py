"""VPT: learned vectors among the image's patches; the text side stays as it is.

Jia et al., "Visual Prompt Tuning", ECCV 2022, with CLIP's text features as the classifier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from vlcal.clip import CLIP, unit
from vlcal.tuners.base import Recipe, Setting, Tuner
from vlcal.tuners.deep import chosen_depth, later_generator
from vlcal.tuners.ivlp import VisualPrompts
from vlcal.tuners.targets import FrozenText
from vlcal.types import ClassSet


class VPT(Tuner):
    """Visual prompts in every block, learned by cross-entropy with fixed text features.

    Args:
        clip: the frozen model; its image tower must be a vision transformer.
        classes: the classes to learn from.
        n_ctx_vision: vectors per block behind the image's patches.
        prompt_depth_vision: image blocks with prompts; 12, or all of a shallower tower.
        template: of the text features; that of the classes if None.
        seed: of the vectors.
    """

    name: ClassVar[str] = "vpt"
    recipe: ClassVar[Recipe] = Recipe(epochs=5, lr=0.0025, batch_size=4)
    settings: ClassVar[Mapping[str, Setting]] = {
        name: Setting({"n_ctx_vision": 8, "prompt_depth_vision": 12}, recipe)
        for name, recipe in (("dac2024", recipe), ("upstream", recipe))
    }
    learns_images: ClassVar[bool] = True
    learns_text: ClassVar[bool] = False

    def __init__(
        self,
        clip: CLIP,
        classes: ClassSet,
        *,
        n_ctx_vision: int = 8,
        prompt_depth_vision: int | None = None,
        template: str | None = "a photo of a {}.",
        seed: int = 0,
    ) -> None:
        depth = chosen_depth("vpt: prompt_depth_vision", prompt_depth_vision, 12, clip.image.layers)
        super().__init__(
            clip,
            classes,
            n_ctx_vision=n_ctx_vision,
            prompt_depth_vision=depth,
            template=template,
            seed=seed,
        )
        generator = later_generator(seed)
        self.vision = VisualPrompts(n_ctx_vision, depth, clip.image.width, generator)
        self.to(clip.device)
        self.text = FrozenText(clip, [template or classes.template])

    def encode_text(self, words: Sequence[str]) -> Tensor:
        """Unit text features [W, D] of words in the template; nothing of them is learned."""
        return self.text(words)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit image features [B, D] of images [B, 3, H, W] under the current prompts."""
        if images.ndim == 2:
            return super().image_features(images)
        return unit(self.clip.image.encode(images, *self.vision()))

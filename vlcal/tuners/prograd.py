"""ProGrad: learned context that only moves where the zero-shot model does not object.

Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from vlcal.clip import CLIP
from vlcal.tuners.base import Average, Recipe, Setting, cosine_logits
from vlcal.tuners.coop import CoOp
from vlcal.tuners.prompts import initial_context
from vlcal.tuners.targets import FrozenText
from vlcal.types import ClassSet, Outputs


class ProGrad(CoOp):
    """CoOp whose gradient loses the part that points against the zero-shot model.

    The zero-shot loss is -T^2 * mean_i sum_c softmax(teacher_i / T)_c log softmax(student_i / T)_c.
    It is reported and steers, but never descended: see `aligned`.

    Args:
        clip: the frozen model.
        classes: the classes to learn from.
        n_ctx: context vectors; zeros fill what the phrase leaves free in front.
        ctx_init: the phrase to start from; by default the words before the name if the template
            ends with the name, else "a photo of a".
        class_token_position: of the name: "end", "middle" or "front".
        class_specific: learn one context per class; such a tuner cannot serve other classes.
        strength: lambda, the part of the conflict that is removed.
        temperature: T of the zero-shot loss.
        template: of the teacher; that of the classes by default.
        seed: unused by this start, kept for the interface.
        max_bytes: see `ContextTokens`; changes no result beyond rounding, and is not saved.
    """

    name: ClassVar[str] = "prograd"
    recipe: ClassVar[Recipe] = Recipe(epochs=100, lr=0.002, batch_size=32)
    settings: ClassVar[Mapping[str, Setting]] = {
        name: Setting({"n_ctx": 16, "strength": 1.0, "temperature": 1.0}, recipe)
        for name, recipe in (("dac2024", recipe), ("upstream", recipe))
    }

    def __init__(
        self,
        clip: CLIP,
        classes: ClassSet,
        *,
        n_ctx: int = 16,
        ctx_init: str | None = None,
        class_token_position: str = "end",
        class_specific: bool = False,
        strength: float = 1.0,
        temperature: float = 1.0,
        template: str | None = None,
        seed: int = 0,
        max_bytes: int | None = None,
    ) -> None:
        super().__init__(
            clip,
            classes,
            n_ctx=n_ctx,
            class_token_position=class_token_position,
            class_specific=class_specific,
            seed=seed,
            max_bytes=max_bytes,
        )
        ctx_init = leading_words(classes.template) if ctx_init is None else ctx_init
        phrase = initial_context(clip.text, None, ctx_init, seed=seed, copies=None)
        if len(phrase) > n_ctx:
            raise ValueError(
                f"prograd: n_ctx must hold the {len(phrase)} tokens of {ctx_init!r}, got {n_ctx}"
            )
        with torch.no_grad():
            self.context.ctx.zero_()[..., n_ctx - len(phrase) :, :] = phrase
        self.strength, self.temperature = strength, temperature
        self.teacher = FrozenText(clip, [template or classes.template])
        self.hyperparameters |= {
            "ctx_init": ctx_init,
            "strength": strength,
            "temperature": temperature,
            "template": template,
        }

    def losses(self, out: Outputs, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy, and the zero-shot loss that only steers."""
        target = self.teacher(self.classes.names)
        teacher = cosine_logits(out.image_features, target, self.logit_scale)
        return super().losses(out, labels) | {
            "zero_shot": soft_cross_entropy(out.logits, teacher, self.temperature)
        }

    def backward(self, losses: dict[str, Tensor], average: Average = list) -> None:
        """Leave the aligned gradient of all terms but the zero-shot loss.

        Both gradients are averaged over the processes before they are compared.
        """
        learned = self.learned()
        rest = torch.stack([term for name, term in losses.items() if name != "zero_shot"]).sum()
        steering = average(torch.autograd.grad(losses["zero_shot"], learned, retain_graph=True))
        own = average(torch.autograd.grad(rest, learned))
        for parameter, mine, theirs in zip(learned, own, steering, strict=True):
            parameter.grad = aligned(mine, theirs, self.strength)


def aligned(own: Tensor, steering: Tensor, strength: float = 1.0) -> Tensor:
    """`own` without `strength` times its part against `steering`; `own` if they do not conflict.

    g_a - strength * (g_a . b) b with b = g_b / |g_b| if g_a . b < 0, else g_a.

    >>> aligned(torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 0.0]))
    tensor([0., 2.])
    """
    dot, square = (own * steering).sum(), steering.square().sum()
    # a zero steering gradient objects to nothing
    conflict = torch.where(square > 0, dot.clamp(max=0) / square, 0.0)
    return own - strength * conflict * steering


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the student's logits [B, C] under the teacher's beliefs, times T^2."""
    beliefs = (teacher.detach() / temperature).softmax(-1)
    log_probs = (student / temperature).log_softmax(-1)
    return -(temperature**2) * (beliefs * log_probs).sum(-1).mean()


def leading_words(template: str) -> str:
    """The words before the name where the template ends with it, else "a photo of a"."""
    before, after = template.split("{}")
    return before.strip() if before.strip() and after.strip() in ("", ".") else "a photo of a"

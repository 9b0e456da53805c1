"""ProDA: learn a distribution of prompts, through the mean and the spread of their class features.

Lu et al., "Prompt Distribution Learning", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlcal.clip import CLIP, unit
from vlcal.tuners.base import Progress, Recipe, Setting, Tuner, cosine_logits
from vlcal.tuners.prompts import ContextTokens, Prompts, initial_context, share
from vlcal.types import ClassSet, Outputs


class ProDA(Tuner):
    """A bank of contexts; a class is the mean of its unit features under all of them.

    A training step takes some contexts (a new random order is walked whenever all had their turn),
    adds `label_variance` to the logits, which bounds the expected cross-entropy of normal class
    features from above, and keeps the contexts apart: the mean absolute cosine between prompts
    without a name is the second term of the loss. The first quarter of the contexts stands behind
    the name, the second around it, the rest in front.

    Logits are logit_scale * image_features @ mean features, which are shorter than one; the
    reported text features are made unit.

    Args:
        clip: the frozen model.
        classes: the classes to learn from.
        n_ctx: vectors per context, drawn from N(0, 0.02^2).
        n_prompts: contexts.
        prompts_per_step: contexts that a training step takes; divides `n_prompts`.
        orthogonality: alpha, the weight of the second term.
        divisor_offset: the covariance of n features is their sum of squares over n plus this: 1 in
            the published code, -1 for an unbiased one.
        normalize: make the mean features unit in the logits as well.
        seed: of the contexts and of their order.
        max_bytes: see `ContextTokens`, for all contexts of a step together; changes no result
            beyond rounding, and is not saved.
    """

    name: ClassVar[str] = "proda"
    recipe: ClassVar[Recipe] = Recipe(epochs=100, lr=0.001, batch_size=4)
    settings: ClassVar[Mapping[str, Setting]] = {
        "dac2024": Setting(
            {"n_ctx": 16, "n_prompts": 32, "prompts_per_step": 4, "orthogonality": 0.1}, recipe
        )
    }
    linear: ClassVar[bool] = False

    def __init__(
        self,
        clip: CLIP,
        classes: ClassSet,
        *,
        n_ctx: int = 16,
        n_prompts: int = 32,
        prompts_per_step: int = 4,
        orthogonality: float = 0.1,
        divisor_offset: int = 1,
        normalize: bool = False,
        seed: int = 0,
        max_bytes: int | None = None,
    ) -> None:
        if n_prompts < 2 or prompts_per_step < 1 or n_prompts % prompts_per_step:
            raise ValueError(
                "proda: n_prompts must be at least 2 and a multiple of prompts_per_step, "
                f"got {n_prompts} and {prompts_per_step}"
            )
        if prompts_per_step + divisor_offset < 1:
            raise ValueError(
                f"proda: divisor_offset must be at least {1 - prompts_per_step} for "
                f"{prompts_per_step} prompts per step, got {divisor_offset}"
            )
        contexts = initial_context(clip.text, n_ctx, None, seed=seed, copies=n_prompts)
        super().__init__(
            clip,
            classes,
            n_ctx=n_ctx,
            n_prompts=n_prompts,
            prompts_per_step=prompts_per_step,
            orthogonality=orthogonality,
            divisor_offset=divisor_offset,
            normalize=normalize,
            seed=seed,
        )
        # the contexts of a step, and all of them without a name
        self.share = share(self.name, max_bytes, prompts_per_step + 1)
        self.contexts = nn.ModuleList(
            ContextTokens(
                clip.text, ctx, position, max_bytes=self.share, who=self.name, by_design=True
            )
            for ctx, position in zip(contexts, positions(n_prompts), strict=True)
        )
        self.orthogonality, self.divisor_offset = orthogonality, divisor_offset
        self.normalize, self.per_step, self.seed = normalize, prompts_per_step, seed
        self._steps = torch.zeros((), dtype=torch.int64)
        self._bank = torch.zeros(0)
        self.set_classes(classes)

    def set_classes(self, classes: ClassSet) -> None:
        """Predict these classes from now on, with the learned contexts."""
        super().set_classes(classes)
        self._prompts = self._tokenize(classes.names)

    def encode_text(self, words: Sequence[str]) -> Tensor:
        """Unit text features [W, D] of any words: their mean over contexts, made unit.

        Over all contexts, in training over those of the step.
        """
        return unit(self._encode(self._tokenize(words)).mean(0))

    def class_features(self) -> Tensor:
        """Unit text features [C, D] of the classes; the features behind them are kept."""
        bank = self._encode(self._prompts)
        # the mean is all that predictions need, so a bank of many classes is not kept for them
        self._bank = bank if self.training else bank.mean(0, keepdim=True)
        return unit(bank.mean(0))

    def forward_features(self, image_features: Tensor) -> Outputs:
        """Logits and features for unit image features [B, D]."""
        text_features = self.text_features()
        mean = text_features if self.normalize else self._bank.mean(0)
        logits = cosine_logits(image_features, mean, self.logit_scale)
        return Outputs(logits, image_features, text_features)

    def losses(self, out: Outputs, labels: Tensor) -> dict[str, Tensor]:
        """The upper bound of the expected cross-entropy, and the closeness of the contexts."""
        count = len(self._bank)
        with torch.autocast(labels.device.type, enabled=False):
            spread = label_variance(
                out.image_features.detach(), self._bank, labels, count + self.divisor_offset
            )
            bound = F.cross_entropy(out.logits + 0.5 * self.logit_scale**2 * spread, labels)
        return {"bound": bound, "orthogonality": self.orthogonality * self._closeness()}

    def on_step_end(self, progress: Progress) -> None:
        """Take the next contexts."""
        self._steps += 1

    def training_state(self) -> dict[str, Tensor]:
        """How many steps were taken, which the order of the contexts follows from."""
        return {"steps": self._steps}

    def selected(self) -> list[int]:
        """The contexts of the coming step."""
        turn, place = divmod(int(self._steps), len(self.contexts) // self.per_step)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + turn)
        order = torch.randperm(len(self.contexts), generator=generator).tolist()
        return order[place * self.per_step : (place + 1) * self.per_step]

    def _tokenize(self, words: Sequence[str]) -> Prompts:
        return self._context(0).tokenize(words)

    def _context(self, number: int) -> ContextTokens:
        context = self.contexts[number]
        assert isinstance(context, ContextTokens)
        return context

    def _encode(self, prompts: Prompts) -> Tensor:
        """Unit features [K, W, D] under all contexts, in training under those of the step."""
        which = self.selected() if self.training else range(len(self.contexts))
        return torch.stack([unit(self._context(number)(prompts)) for number in which])

    def _closeness(self) -> Tensor:
        """Mean absolute cosine between different contexts, each read as a prompt without a name."""
        tower, count = self.clip.text, len(self.contexts)
        empty = self._tokenize([""])
        ctx = torch.stack([self._context(number).ctx for number in range(count)])
        rest = tower.embed(empty.tokens).expand(count, -1, -1)
        prompts = torch.cat([rest[:, :1], ctx.to(rest.dtype), rest[:, 1:]], 1)
        end = (empty.end + ctx.shape[1]).expand(count)
        features = unit(tower.encode(prompts, end, max_bytes=self.share))
        with torch.autocast(features.device.type, enabled=False):
            cosines = (features @ features.T).abs()
        return (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))


def positions(count: int) -> list[str]:
    """Where the names stand: a quarter in front, a quarter in the middle, the rest at the end."""
    quarter = count // 4
    return ["front"] * quarter + ["middle"] * quarter + ["end"] * (count - 2 * quarter)


def label_variance(images: Tensor, bank: Tensor, labels: Tensor, divisor: int) -> Tensor:
    """Variance [B, C] of the difference between the cosines of each class and of the label.

    s_ic = sum_d f_id^2 (S_d[y, y] + S_d[c, c] - 2 S_d[y, c]), where S_d is the covariance of the
    classes' features over the bank in dimension d. That is sum_k sum_d f_id^2 (x_ykd - x_ckd)^2 /
    divisor with x the bank without its mean, so no C x C matrix is made.

    Args:
        images: [B, D].
        bank: class features [K, C, D] under K prompts.
        labels: [B], the y of each image.
        divisor: of the covariance.
    """
    centered = bank - bank.mean(0)
    squares = images.square().to(bank.dtype)
    own = centered[:, labels]  # [K, B, D]
    cross = ((squares * own) @ centered.mT).sum(0)
    each = squares @ centered.square().sum(0).T
    same = (squares * own.square().sum(0)).sum(-1, keepdim=True)
    return (same + each - 2 * cross) / divisor

"""Tuner and Recipe: what a tuning method is, and how long and how fast it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlcal.clip import CLIP
from vlcal.regularizers import EncodeText
from vlcal.tuners.precision import PRECISIONS
from vlcal.types import Batch, ClassSet, Outputs

Average = Callable[[Iterable[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How a tuner is trained: SGD, a constant warm-up, then a cosine that changes once per epoch.

    The rate of epoch e = 0, 1, ... is `warmup_lr` while e < warmup_epochs, then
    lr * (1 + cos(pi * (e - warmup_epochs) / epochs)) / 2, as in CoOp (Zhou et al., IJCV 2022).

    Args:
        epochs: passes over the training images.
        lr: the largest learning rate.
        batch_size: images per step; for whoever builds the loader, the loop takes batches as they
            come.
        momentum: of SGD.
        weight_decay: of SGD, on everything that is learned.
        warmup_epochs: epochs at `warmup_lr`.
        warmup_lr: the rate before the cosine starts.
        precision: "fp32", or "bf16" or "fp16" for autocast, "fp16" with a factor on the loss that
            adapts; parameters, features and logits are float32 in all, and so is all that is
            evaluated.
    """

    epochs: int = 200
    lr: float = 0.002
    batch_size: int = 32
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: int = 1
    warmup_lr: float = 1e-5
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"Recipe: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"Recipe: lr must be positive and finite, got {self.lr}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"Recipe: precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        if epoch < self.warmup_epochs:
            return self.warmup_lr
        return self.lr * (1 + math.cos(math.pi * (epoch - self.warmup_epochs) / self.epochs)) / 2


class Setting(NamedTuple):
    """A published way to run a tuner: arguments of its constructor, and the recipe."""

    arguments: dict[str, Any]
    recipe: Recipe


class Progress(NamedTuple):
    """Where training is: epoch and step in it, counted from 0, and the named losses of the step."""

    epoch: int
    step: int
    losses: dict[str, float]


class Tuner(nn.Module):
    """A way to adapt CLIP to some classes; this base class keeps every prompt as it is.

    Parameters and buffers of a tuner are exactly what it learns: the CLIP model is used, not
    registered, so `state_dict()` holds what was learned and nothing else. `to()` and `double()`
    move the CLIP model along.

    Args:
        clip: the frozen model.
        classes: the classes to tell apart, with their template.
        hyperparameters: the constructor's own arguments, kept for checkpoints and results, without
            those in `unrecorded`: they change how something is computed and not what.
    """

    name: ClassVar[str]
    recipe: ClassVar[Recipe] = Recipe()
    settings: ClassVar[Mapping[str, Setting]] = {}
    unrecorded: ClassVar[frozenset[str]] = frozenset({"max_bytes"})
    learns_images: ClassVar[bool] = False
    learns_text: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def __init__(self, clip: CLIP, classes: ClassSet, **hyperparameters: Any) -> None:
        super().__init__()
        # in the instance's dictionary and not a submodule, so that no checkpoint contains it
        self.__dict__["clip"] = clip
        self.classes = classes
        self.hyperparameters = hyperparameters
        self.logit_scale = clip.logit_scale
        self._features: tuple[Any, Tensor] | None = None

    clip: CLIP

    # -- classes and words

    def set_classes(self, classes: ClassSet) -> None:
        """Predict these classes from now on, with what has been learned."""
        if not len(classes):
            raise ValueError(f"{self.name}: at least one class is needed, got none")
        self.classes = classes
        self._features = None

    def encode_text(self, words: Sequence[str]) -> Tensor:
        """Unit text features [W, D] of any words under the current prompts."""
        raise NotImplementedError(f"{self.name}: has no open vocabulary, only its classes")

    def class_features(self) -> Tensor:
        """Unit text features [C, D] of the classes, computed now and with gradients."""
        return self.encode_text(self.classes.names)

    def text_features(self) -> Tensor:
        """Unit text features [C, D] of the classes; without gradients, computed once and kept.

        What is kept is dropped when the classes or any learned tensor change, and by `train()`.
        """
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            return self.class_features()
        autocast = torch.is_autocast_enabled(self.clip.device.type)
        learned = [(t.data_ptr(), t._version, t.dtype) for t in self.state_dict().values()]
        key = (autocast, self.clip.device, self.clip.dtype, learned)
        if self._features is None or self._features[0] != key:
            self._features = (key, self.class_features())
        return self._features[1]

    # -- images

    def image_features(self, images: Tensor) -> Tensor:
        """Unit image features [B, D] of images [B, 3, H, W].

        A matrix [B, D] is taken for unit features that were computed before, unless the method
        changes the image tower.
        """
        if images.ndim != 2:
            return self.clip.encode_image(images)
        if self.learns_images:
            raise ValueError(f"{self.name}: needs images, got features {tuple(images.shape)}")
        if images.shape[1] != self.clip.embed_dim:
            raise ValueError(
                f"{self.name}: image features must be [B, {self.clip.embed_dim}], "
                f"got {tuple(images.shape)}"
            )
        return images.to(self.clip.device)

    def forward_features(self, image_features: Tensor) -> Outputs:
        """Logits and features for unit image features [B, D]."""
        text_features = self.text_features()
        logits = cosine_logits(image_features, text_features, self.logit_scale)
        return Outputs(logits, image_features, text_features)

    def forward(self, images: Tensor) -> Outputs:
        """Logits and features for images [B, 3, H, W] or unit image features [B, D]."""
        return self.forward_features(self.image_features(images))

    # -- hooks of the loops

    def losses(self, out: Outputs, labels: Tensor) -> dict[str, Tensor]:
        """The named terms of the loss; the loop adds them up."""
        return {"cross_entropy": F.cross_entropy(out.logits, labels)}

    def prepare(self, train: Iterable[Batch]) -> None:
        """Look at the training data before the first step."""

    def learned(self) -> list[nn.Parameter]:
        """The parameters that require gradients."""
        return [p for p in self.parameters() if p.requires_grad]

    def backward(self, losses: dict[str, Tensor], average: Average = list) -> None:
        """Leave a gradient in every learned parameter.

        Args:
            losses: of this process's images; under float16 all times the same factor.
            average: takes the gradients of a scalar, one per learned parameter, and gives those
                over the images of all processes, without the factor. What is left must have gone
                through it, each gradient before it is combined with others.
        """
        learned, total = self.learned(), torch.stack(list(losses.values())).sum()
        gradients = average(torch.autograd.grad(total, learned, materialize_grads=True))
        for parameter, gradient in zip(learned, gradients, strict=True):
            parameter.grad = gradient

    def on_step_end(self, progress: Progress) -> None:
        """Do something after a step of the optimizer."""

    def on_epoch_end(self, epoch: int, epochs: int) -> None:
        """Do something after epoch `epoch` (counted from 0) of `epochs`."""

    def step_encoder(self, out: Outputs) -> EncodeText:
        """What regularizers encode words with, in the step whose outputs these are."""
        return self.encode_text

    def frozen_image_features(self, images: Tensor, out: Outputs) -> Tensor:
        """Unit image features [B, D] of the frozen model, for the images that gave these outputs.

        Those of the outputs, without gradients, unless the method changes image features.
        """
        if not self.learns_images:
            return out.image_features.detach()
        with torch.no_grad():
            return self.clip.encode_image(images)

    def training_state(self) -> dict[str, Tensor]:
        """What the next step depends on beside what is learned, as the tensors that hold it.

        An interrupted training stores them and writes into them when it goes on; saved tuners do
        not hold them.
        """
        return {}

    def predict(self, images: Tensor) -> Outputs:
        """What `forward` gives, for methods that do not adapt to each image."""
        return self.forward(images)

    # -- torch

    def train(self, mode: bool = True) -> Tuner:
        """Switch between training and evaluation, which the CLIP model never leaves."""
        self._features = None
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Tuner:
        self.clip._apply(fn)
        self._features = None
        return super()._apply(fn, recurse)


def cosine_logits(image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
    """logit_scale * image_features @ text_features.T [B, C], never in half precision."""
    with torch.autocast(text_features.device.type, enabled=False):
        return logit_scale * image_features.to(text_features.dtype) @ text_features.T

"""CLIP preprocessing for evaluation and augmentation for training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor

from vlcal._optional import optional
from vlcal.data.images import as_rgb

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
RESIZE_MODES = ("shortest", "squash")


class Preprocess(Protocol):
    """What a model says about its images; `vlcal.clip` and plain objects both qualify."""

    @property
    def size(self) -> int:
        """Side of the square input, pixels."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Three channel means."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Three channel standard deviations."""
        ...

    @property
    def interpolation(self) -> str:
        """One of `INTERPOLATIONS`."""
        ...

    @property
    def resize_mode(self) -> str:
        """One of `RESIZE_MODES`."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Resize the shorter side, crop the center, normalize: equal to open_clip's own on PIL images.

    Args:
        size: side of the output, pixels.
        mean: channel means, of values in 0..1.
        std: channel standard deviations, positive.
        interpolation: "bicubic", "bilinear" or "nearest".
        resize_mode: "shortest" side, then center crop; or "squash" both sides at once (SigLIP).
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str = "shortest"
    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"transforms: size must be at least 1, got {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                "transforms: mean and std must be three numbers, std positive, "
                f"got {self.mean} and {self.std}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"transforms: interpolation must be one of {INTERPOLATIONS}, "
                f"got {self.interpolation!r}"
            )
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(
                f"transforms: resize_mode must be one of {RESIZE_MODES}, got {self.resize_mode!r}"
            )

    def __call__(self, image: Any, generator: Generator | None = None) -> Tensor:
        """The tensor of one image, float32 [3, size, size]; the generator is not used."""
        f, mode = _torchvision(self.interpolation)
        square = [self.size, self.size]
        sides = square if self.resize_mode == "squash" else [self.size]
        image = f.resize(as_rgb(image), sides, interpolation=mode)
        return self.normalize(f, f.center_crop(image, square))

    def normalize(self, f: Any, image: Any) -> Tensor:
        """The float tensor [3, H, W] of an RGB PIL image, minus mean, over std."""
        values = f.pil_to_tensor(image).float() / 255
        return f.normalize(values, list(self.mean), list(self.std))


@dataclass(frozen=True)
class Training(Evaluation):
    """Random resized crop and horizontal flip, then normalize; a function of the generator alone.

    Args:
        scale: range of the cropped share of the area.
        ratio: range of width over height, drawn uniformly in its logarithm.
        flip: probability of a horizontal flip.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    random: ClassVar[bool] = True

    def __call__(self, image: Any, generator: Generator | None = None) -> Tensor:
        """The tensor of one augmented image, float32 [3, size, size]."""
        if generator is None:
            raise ValueError("transforms.training: needs a generator, got None")
        f, mode = _torchvision(self.interpolation)
        image = as_rgb(image)
        top, left, height, width = self.crop(image.height, image.width, generator)
        image = f.resized_crop(
            image, top, left, height, width, [self.size, self.size], interpolation=mode
        )
        if torch.rand((), generator=generator) < self.flip:
            image = f.horizontal_flip(image)
        return self.normalize(f, image)

    def crop(self, height: int, width: int, generator: Generator) -> tuple[int, int, int, int]:
        """A random box (top, left, height, width), torchvision's rule: ten tries, then central."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            u, v = torch.rand(2, generator=generator).tolist()
            area = height * width * (self.scale[0] + u * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + v * (high - low))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = int(torch.randint(height - h + 1, (), generator=generator))
                left = int(torch.randint(width - w + 1, (), generator=generator))
                return top, left, h, w
        w = min(width, round(height * self.ratio[1]))
        h = min(height, round(width / self.ratio[0]))
        return (height - h) // 2, (width - w) // 2, h, w


def evaluation(preprocess: Preprocess) -> Evaluation:
    """The transform CLIP is evaluated with: `transform(image)` gives a tensor [3, size, size]."""
    p = preprocess
    return Evaluation(p.size, tuple(p.mean), tuple(p.std), p.interpolation, p.resize_mode)


def training(preprocess: Preprocess, **options: Any) -> Training:
    """The augmentation of CoOp: `transform(image, generator)` gives a tensor [3, size, size].

    `options` are `scale`, `ratio` and `flip` of `Training` (CaRot: scale=(0.9, 1.0), flip=0).
    """
    p = preprocess
    facts = p.size, tuple(p.mean), tuple(p.std), p.interpolation, p.resize_mode
    return Training(*facts, **options)


def _torchvision(interpolation: str) -> tuple[Any, Any]:
    module = optional("torchvision.transforms.v2.functional", "clip", "vlcal.data.transforms")
    modes = optional("torchvision.transforms", "clip", "vlcal.data.transforms").InterpolationMode
    return module, modes(interpolation)

"""Named workloads with their reasons, and the seeded data they are made of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Workload:
    """Sizes of one benchmark and why these sizes.

    Args:
        name: what the table says.
        reason: who meets these sizes.
        n: samples, images or queries.
        classes: classes or vocabulary size.
        dim: features.
        k: neighbors.
        full: too large for the quick run.
    """

    name: str
    reason: str = field(compare=False)
    n: int
    classes: int = 0
    dim: int = 512
    k: int = 0
    full: bool = False

    def __str__(self) -> str:
        return self.name

    def named(self, name: str) -> Workload:
        """The same sizes under another name."""
        return replace(self, name=name)

    def features(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Image features [n, dim] and class or vocabulary features [classes, dim]."""
        return clip_like(self.n, self.dim, seed + 1), clip_like(self.classes, self.dim, seed)


def clip_like(n: int, dim: int, seed: int = 0) -> Tensor:
    """Unit rows as CLIP gives: mean cosine 0.75, clusters, power-law spectrum, two outlier axes.

    The cone, the clusters and the outlier axes are the same for every `n` and `seed`.
    """
    shared = torch.Generator().manual_seed(1234 + dim)
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, dim + 1, dtype=torch.float32) ** -0.5
    centers = torch.randn(64, dim, generator=shared) * spectrum
    cone = torch.randn(dim, generator=shared) * 0.5
    cone[[7, 133 % dim]] = torch.tensor([9.0, -6.0])  # the outliers of ViT-B/32 text features
    rows = torch.randn(n, dim, generator=generator) * spectrum
    rows += centers[torch.randint(64, (n,), generator=generator)]
    rows *= (1 / 3) ** 0.5 / rows.square().sum(-1).mean().sqrt()
    rows += cone / cone.norm()
    return torch.nn.functional.normalize(rows, dim=-1)


def confidences(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Confidences of a sure model (most of them near 1) that is right a little less often."""
    generator = torch.Generator().manual_seed(seed)
    confidence = 1 - torch.rand(n, generator=generator).square() * 0.97
    correct = torch.rand(n, generator=generator) < confidence - 0.03
    return confidence, correct


def logits(n: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [n, classes] with accuracy about 0.7, and labels [n]."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, classes, generator=generator).mul_(2.0)
    labels = torch.randint(classes, (n,), generator=generator)
    lift = 9.0 + 3.0 * torch.randn(n, generator=generator)
    values[torch.arange(n), labels] += lift
    return values, labels


CONFIDENCES = [
    Workload("1e6 confidences", "twenty ImageNet validation sets", n=1_000_000),
    Workload("1e7 confidences", "pixels, or a web-scale stream", n=10_000_000, full=True),
    Workload("1e8 confidences", "where float32 counters are wrong", n=100_000_000, full=True),
]
LOGITS = [
    Workload("imagenet-val/5 logits", "a quick ImageNet: 10,000 x 1,000", n=10_000, classes=1000),
    Workload(
        "2 x imagenet-val logits",
        "validation and test of ImageNet",
        n=100_000,
        classes=1000,
        full=True,
    ),
]
SEARCH = [
    Workload("100 in 100k, K=10", "a class list against WordNet's nouns", 100, 100_000, k=10),
    Workload("100 in 100k, K=50", "proximity with many neighbors", 100, 100_000, k=50),
    Workload("1000 in 10k, K=10", "ImageNet classes against ImageNet-21k", 1000, 10_000, k=10),
    Workload("1000 in 100k, K=10", "ImageNet against the nouns", 1000, 100_000, k=10, full=True),
    Workload("1000 in 100k, K=1", "nearest base class", 1000, 100_000, k=1, full=True),
    Workload("1000 in 100k, K=50", "as above, 50 neighbors", 1000, 100_000, k=50, full=True),
    Workload("1 in 100k, K=10", "one question at a time", 1, 100_000, k=10, full=True),
    Workload(
        "10k in 100k, K=10", "ImageNet-21k against the nouns", 10_000, 100_000, k=10, full=True
    ),
    Workload("100 in 1M, K=10", "a class list against a million", 100, 1_000_000, k=10, full=True),
]
FUSED = [
    Workload("imagenet-val/5", "a quick ImageNet: 10,000 x 1,000 x 512", 10_000, 1000),
    Workload("1k images, 10k classes", "a tenth of ImageNet-21k", 1000, 10_000),
    Workload("imagenet-val", "50,000 x 1,000 x 512", 50_000, 1000, full=True),
    Workload("10k images, 10k classes", "an open vocabulary", 10_000, 10_000, full=True),
    Workload("1k images, 100k classes", "all of WordNet's nouns", 1000, 100_000, full=True),
]
DISTANCE_AWARE = [
    Workload("1k new, 1k base classes", "halves of ImageNet twice over", 1000, 1000),
    Workload("10k new, 10k base classes", "halves of ImageNet-21k", 10_000, 10_000, full=True),
]
ROW_SCALING = [
    Workload("300 images, 100k classes", "a taste of all of WordNet's nouns", 300, 100_000),
    Workload("10k images, 100k classes", "all of WordNet's nouns", 10_000, 100_000, full=True),
]
TRAINING = [
    Workload("4096 x 1000", "feature-space training on ImageNet classes", 4096, 1000),
    Workload("1024 x 10k", "a quick ImageNet-21k step", 1024, 10_000),
    Workload("4096 x 10k", "ImageNet-21k", 4096, 10_000, full=True),
]
PROMPTS = [Workload("100 prompts", "a fine-grained data set, 32 images a step", 32, 100)]
OWN_PROMPTS = [
    Workload("1k prompts", "ImageNet, 32 images a step", 32, 1000, full=True),
    Workload("20k prompts, 2 GiB", "ImageNet-21k, in 2 GiB", 32, 20_000, full=True),
]
WORDS = [Workload("1k words", "a class list, or a hundredth of WordNet's nouns", 1000)]
DENSITY = [
    Workload("5k rows under 5k points", "a fine-grained data set", 5000, 5000),
    Workload(
        "25k rows under 25k points", "half of ImageNet's validation", 25_000, 25_000, full=True
    ),
]

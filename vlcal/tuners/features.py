"""Image features in the place of images: encoded once, trained on for as many epochs as wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vlcal.clip import CLIP
from vlcal.types import Batch


def encode_views(clip: CLIP, loader: Iterable[Batch], views: int = 1) -> tuple[Tensor, Tensor]:
    """Unit image features [views, N, D] and labels [N] in the order of the list, on the CPU.

    Each view is one pass over the loader, so an augmenting loader gives different views. Training
    on V stored views replaces an endless stream of augmentations by V of them.

    Args:
        clip: the model.
        loader: batches that visit every image once per pass, in any order.
        views: passes, at least 1.

    Raises:
        ValueError: no views, or a pass that misses or repeats images.
    """
    if views < 1:
        raise ValueError(f"encode_views: views must be at least 1, got {views}")
    passes = [_encode_once(clip, loader) for _ in range(views)]
    return torch.stack([features for features, _ in passes]), passes[0][1]


@torch.no_grad()
def _encode_once(clip: CLIP, loader: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    parts = [(clip.encode_image(b.images).cpu(), b.labels, b.indices) for b in loader]
    if not parts:
        raise ValueError("encode_views: the loader yields no batches")
    features, labels, indices = (torch.cat(columns) for columns in zip(*parts, strict=True))
    order = every_sample_once("encode_views", indices)
    return features[order], labels[order]


def every_sample_once(who: str, indices: Tensor) -> Tensor:
    """The order [N] that sorts indices 0..N-1, or a ValueError if some are missing or repeated."""
    order = indices.argsort(stable=True)
    if not torch.equal(indices[order], torch.arange(len(indices), device=indices.device)):
        repeated = len(indices) - len(indices.unique())
        raise ValueError(
            f"{who}: the loader must visit every sample once, got {len(indices)} with {repeated} "
            f"repeated and largest index {int(indices.max())}; turn drop_last off"
        )
    return order


class FeatureBatches:
    """A loader over stored image features: each epoch shuffles and picks one view per image.

    Args:
        features: [N, D] or [V, N, D], unit norm.
        labels: [N].
        batch_size: rows per batch.
        shuffle: draw a new order and new views each epoch; otherwise the order of the list and the
            first view.
        drop_last: leave out a last batch that is not full, unless it is the only one.
        generator: of order and views; `fit` seeds it.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self.features = features if features.ndim == 3 else features[None]
        if self.features.ndim != 3 or self.features.shape[1] != len(labels) or not len(labels):
            raise ValueError(
                "FeatureBatches: features must be [N, D] or [V, N, D] "
                f"with N = {len(labels)} labels and N at least 1, got {tuple(features.shape)}"
            )
        if batch_size < 1:
            raise ValueError(f"FeatureBatches: batch_size must be at least 1, got {batch_size}")
        self.labels, self.batch_size = labels, batch_size
        self.shuffle, self.drop_last = shuffle, drop_last
        self.generator = torch.Generator() if generator is None else generator

    def __len__(self) -> int:
        full, rest = divmod(len(self.labels), self.batch_size)
        return full if full and self.drop_last else full + bool(rest)

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.labels)
        order, view = torch.arange(count), torch.zeros(count, dtype=torch.int64)
        if self.shuffle:
            order = torch.randperm(count, generator=self.generator)
            view = torch.randint(len(self.features), (count,), generator=self.generator)
        for rows in order.split(self.batch_size)[: len(self)]:
            yield Batch(self.features[view[rows], rows], self.labels[rows], rows)

"""Lists of labelled images, the datasets they make up, and the loader of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from vlcal.types import Batch, ClassSet


class Item(NamedTuple):
    """One labelled image: its path relative to the dataset's root, its label and its class name."""

    path: str
    label: int
    class_name: str


Split = list[Item]


@dataclass(frozen=True)
class Dataset:
    """Three lists of items over one set of classes, and the function that reads an item's pixels.

    Args:
        name: how results name it.
        classes: the classes in label order, with the dataset's template.
        train: items to tune on; may be empty, as may `val` and `test`.
        val: items to calibrate on.
        test: items to measure on.
        root: the folder that paths are relative to; None for bundled data.
        read: gives the pixels of an item, a PIL image or uint8 [H, W] or [H, W, 3].
    """

    name: str
    classes: ClassSet
    train: Split
    val: Split
    test: Split
    root: Path | None
    read: Callable[[Item], Any]


class ImageList(TorchDataset):
    """Items as (image [3, H, W], label, index); an index may come with the seed of its randomness.

    Args:
        items: what to read.
        read: gives the pixels of an item.
        transform: `transform(pixels, generator)` gives a float tensor [3, H, W].
    """

    def __init__(
        self,
        items: Sequence[Item],
        read: Callable[[Item], Any],
        transform: Callable[[Any, Generator | None], Tensor],
    ) -> None:
        self.items = list(items)
        self.read = read
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, draw: int | tuple[int, int | None]) -> tuple[Tensor, int, int]:
        index, seed = draw if isinstance(draw, tuple) else (draw, None)
        item = self.items[index]
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return self.transform(self.read(item), generator), item.label, index


def loader(
    items: Sequence[Item],
    dataset: Dataset,
    transform: Callable[[Any, Generator | None], Tensor],
    *,
    batch_size: int = 32,
    shuffle: bool = False,
    generator: Generator | None = None,
    drop_last: bool = False,
    workers: int = 0,
) -> DataLoader:
    """Batches of items; order and augmentation depend on `generator` alone, never on `workers`.

    Args:
        items: a list of `dataset`, or a part of one.
        dataset: supplies `read`.
        transform: `transforms.evaluation` or `transforms.training`.
        batch_size: at least 1.
        shuffle: a new order in every pass, drawn from `generator`.
        generator: the only source of randomness; it advances with every pass.
        drop_last: drop an incomplete last batch, unless it is the only one.
        workers: processes that read images; 0 reads in this one.

    Returns:
        A DataLoader of `Batch`; `indices` are positions in `items`.

    Raises:
        ValueError: no items, a batch size below 1, or randomness without a generator.
    """
    if not items:
        raise ValueError(f"loader: needs at least one item, got an empty list of {dataset.name}")
    if batch_size < 1:
        raise ValueError(f"loader: batch_size must be at least 1, got {batch_size}")
    if generator is None and (shuffle or getattr(transform, "random", False)):
        raise ValueError("loader: shuffling and training transforms need a generator, got None")
    return DataLoader(
        ImageList(items, dataset.read, transform),
        batch_size=batch_size,
        sampler=_Draws(len(items), shuffle, generator),
        drop_last=drop_last and len(items) >= batch_size,
        num_workers=workers,
        collate_fn=_collate,
        # for the seeds of worker processes: without it every pass would draw from the global stream
        generator=torch.Generator().manual_seed(0),
    )


class _Draws(Sampler):
    """Positions in order or shuffled, each with a seed; drawn before workers come into play."""

    def __init__(self, n: int, shuffle: bool, generator: Generator | None) -> None:
        self.n = n
        self.shuffle = shuffle
        self.generator = generator

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[int, int | None]]:
        if self.generator is None:
            return iter([(index, None) for index in range(self.n)])
        order = torch.arange(self.n)
        if self.shuffle:
            order = torch.randperm(self.n, generator=self.generator)
        seeds = torch.randint(2**62, (self.n,), generator=self.generator)
        return iter(list(zip(order.tolist(), seeds.tolist(), strict=True)))


def _collate(samples: list[tuple[Tensor, int, int]]) -> Batch:
    images, labels, indices = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(indices))

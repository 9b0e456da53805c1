"""predict(tuner, loader) -> Predictions: every sample once and in order, on any world size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vlcal import distributed
from vlcal.tuners import Tuner
from vlcal.tuners.features import every_sample_once
from vlcal.types import Batch, Outputs, Predictions

MAX_LOGIT_BYTES = 256 << 20


def predict(
    tuner: Tuner,
    loader: Iterable[Batch],
    zero_shot: Tuner | None = None,
    *,
    max_logit_bytes: int = MAX_LOGIT_BYTES,
) -> Predictions:
    """Logits, labels and features of every sample, in the order of the list.

    Logits are stored if N * C * 4 is at most `max_logit_bytes`, or if they are not a product of
    features; otherwise the predictions hold features and `logit_scale` only, and logits exist in
    blocks. Under torchrun every process encodes its batches and all return the same. Everything is
    float32 and on the CPU.

    Args:
        tuner: makes the predictions; its training mode is put back afterwards.
        loader: batches that visit every sample once, in any order; images, or unit image features
            [B, D].
        zero_shot: the untuned model for the same classes; its predictions on the same images become
            `.zero_shot`. Images are encoded once for both if both read the same frozen image tower.
        max_logit_bytes: see above.

    Raises:
        ValueError: the loader misses or repeats samples, or the two tuners predict different
            classes.
    """
    if zero_shot is not None and zero_shot.classes.names != tuner.classes.names:
        raise ValueError(
            f"predict: zero_shot must predict the {len(tuner.classes)} classes of the tuner "
            f"in the same order, got {len(zero_shot.classes)} classes"
        )
    mode = tuner.training
    tuner.eval()
    try:
        return _predict(tuner, loader, zero_shot, max_logit_bytes)
    finally:
        tuner.train(mode)


@torch.no_grad()
def _predict(
    tuner: Tuner, loader: Iterable[Batch], zero_shot: Tuner | None, max_bytes: int
) -> Predictions:
    tuned, twin = _Rows(tuner, max_bytes), None
    if zero_shot is not None:
        twin = _Rows(zero_shot, max_bytes)
    shared = zero_shot is not None and _same_image_features(tuner, zero_shot)
    labels, indices = [], []
    for batch in _my_batches(loader):
        images = batch.images.to(tuner.clip.device)
        if shared:
            images = tuner.image_features(images)
        tuned.add(tuner.predict(images))
        if twin is not None and zero_shot is not None:
            twin.add(zero_shot.predict(images))
        labels.append(batch.labels.cpu())
        indices.append(batch.indices.cpu())
    order = every_sample_once("predict", _gather(indices, torch.zeros(0, dtype=torch.int64)))
    if not len(order):
        raise ValueError("predict: the loader yields no samples")
    gathered = _gather(labels, torch.zeros(0, dtype=torch.int64))[order]
    predictions = tuned.predictions(order, gathered)
    return (
        predictions
        if twin is None
        else replace(predictions, zero_shot=twin.predictions(order, gathered))
    )


class _Rows:
    """Collects what one tuner says, batch by batch."""

    def __init__(self, tuner: Tuner, max_bytes: int) -> None:
        self.tuner, self.max_bytes = tuner, max_bytes
        self.features: list[Tensor] = []
        self.logits: list[Tensor] | None = []
        self.count = 0

    def add(self, out: Outputs) -> None:
        self.count += len(out.logits)
        self.features.append(out.image_features.float().cpu())
        if not self._fits(self.count):
            self.logits = None
        if self.logits is not None:
            self.logits.append(out.logits.float().cpu())

    def _fits(self, count: int) -> bool:
        return not self.tuner.linear or count * len(self.tuner.classes) * 4 <= self.max_bytes

    def predictions(self, order: Tensor, labels: Tensor) -> Predictions:
        n_classes, width = len(self.tuner.classes), self.tuner.clip.embed_dim
        logits = None
        if self._fits(len(order)) and self.logits is not None:
            logits = _gather(self.logits, torch.zeros(0, n_classes))[order]
        return Predictions(
            logits=logits,
            labels=labels,
            image_features=_gather(self.features, torch.zeros(0, width))[order],
            text_features=self.tuner.text_features().float().cpu(),
            logit_scale=self.tuner.logit_scale,
            class_names=self.tuner.classes.names,
        )


def _same_image_features(tuner: Tuner, zero_shot: Tuner) -> bool:
    return tuner.clip is zero_shot.clip and not (tuner.learns_images or zero_shot.learns_images)


def _gather(parts: list[Tensor], empty: Tensor) -> Tensor:
    """The rows of all processes; `empty` stands for a process without any."""
    return distributed.gather(torch.cat([empty, *parts]))


def _my_batches(loader: Any) -> Iterable[Batch]:
    """Every world-th batch, starting at this process's rank; a DataLoader only reads these."""
    rank, world = distributed.rank(), distributed.world()
    if world == 1:
        return loader
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return islice(loader, rank, None, world)
    return DataLoader(
        loader.dataset,
        batch_sampler=list(islice(loader.batch_sampler, rank, None, world)),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        generator=loader.generator,
    )

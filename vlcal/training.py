"""fit(tuner, loader, recipe, regularizers): the one training loop."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from vlcal import distributed
from vlcal.regularizers import Regularizer, Setup
from vlcal.tuners import Progress, Recipe, Tuner
from vlcal.tuners.precision import LossScale, half_type
from vlcal.tuners.resuming import restore, store
from vlcal.tuners.targets import FrozenImages
from vlcal.types import Batch, check_labels

Report = Callable[[int, int, dict[str, float]], None]

_log = logging.getLogger("vlcal")


class TrainingDiverged(RuntimeError):
    """The loss or what is learned became NaN or infinite; the tuner holds the last good state."""


def fit(
    tuner: Tuner,
    loader: Iterable[Batch],
    recipe: Recipe | None = None,
    regularizers: Sequence[Regularizer] = (),
    *,
    seed: int = 0,
    progress: Report | None = None,
    checkpoint: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Train a tuner in place and leave it in evaluation mode.

    The loss is the sum of the tuner's named losses and of one penalty per regularizer. Under
    torchrun every process iterates over the same loader, takes its share of each batch, and
    gradients are averaged over the samples, so the result is that of one process up to rounding.

    Args:
        tuner: what is trained; only its parameters that require gradients change.
        loader: batches with images [B, 3, H, W], or with unit image features [B, D] for tuners that
            do not change the image tower (`FeatureBatches` makes such a loader, and 200 epochs
            cheap).
        recipe: the tuner's own by default.
        regularizers: training-time calibration methods; each is prepared before the first step.
        seed: every generator that the loader, its dataset, its sampler or a regularizer holds as
            `generator` is seeded from this, so equal seeds give equal results.
        progress: called on the main process after each step with epoch, step in the epoch, and the
            named losses.
        checkpoint: a file that is written after every epoch; if it exists, training continues
            behind its last epoch and ends with the same bits as without the interruption.

    Returns:
        One dictionary per epoch: "epoch", "rate", and the mean of every loss over the images of the
        epoch. With precision "fp16" also "skipped": the steps that were left out because a gradient
        was not finite. Such a step changes nothing but the factor on the loss (see `LossScale`).

    Raises:
        TrainingDiverged: a loss is not finite; the message names the step, the tuner holds the last
            good state.
        KeyboardInterrupt: after SIGINT, once the running step is complete and the tuner consistent.
        NotImplementedError: a regularizer cannot run on this tuner, or the precision not on this
            device; before anything is trained.
        ValueError: nothing to learn or to learn from, labels that do not fit the classes, a
            checkpoint of another run.
    """
    run = _Run(tuner, loader, recipe or tuner.recipe, regularizers, progress)
    generators = _generators(loader, regularizers)
    for number, generator in enumerate(generators):
        generator.manual_seed(1000 * seed + number)
    tuner.prepare(loader)
    for regularizer in regularizers:
        regularizer.prepare(setup_of(tuner, run.frozen))
    about = run.identity() | {"seed": seed}
    path = None if checkpoint is None else Path(checkpoint)
    history: list[dict[str, Any]] = []
    if path is not None and path.exists():
        history = restore(path, about, tuner, run.optimizer, generators, run.holders())
    tuner.train()
    try:
        with _interruptible(run):
            for epoch in range(len(history), run.recipe.epochs):
                history.append(run.epoch(epoch))
                if path is not None and distributed.is_main():
                    store(path, about, history, tuner, run.optimizer, generators, run.holders())
                distributed.barrier()
    finally:
        tuner.eval()
    run.say_what_was_left_out()
    return history


def setup_of(tuner: Tuner, frozen_images: FrozenImages | None = None) -> Setup:
    """What a regularizer may know of a tuner."""
    return Setup(
        tuner.clip,
        tuner.classes,
        tuner.encode_text,
        tuner.learns_images,
        tuner.learns_text,
        frozen_images or FrozenImages(tuner),
    )


class _Run:
    """What the steps of one call of `fit` share."""

    def __init__(
        self,
        tuner: Tuner,
        loader: Iterable[Batch],
        recipe: Recipe,
        regularizers: Sequence[Regularizer],
        progress: Report | None,
    ) -> None:
        self.tuner, self.loader, self.recipe = tuner, loader, recipe
        self.regularizers, self.progress = regularizers, progress
        self.learned = [p for p in tuner.parameters() if p.requires_grad]
        if not self.learned:
            raise ValueError(f"fit: {tuner.name} learns nothing, so there is nothing to train")
        self.optimizer = torch.optim.SGD(
            self.learned,
            lr=recipe.warmup_lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self.half = half_type("fit", recipe.precision, tuner.clip.device)
        self.scale = LossScale() if recipe.precision == "fp16" else None
        self.frozen = FrozenImages(tuner)
        self.good = [p.detach().clone() for p in self.learned]
        self.asked = self.agreed = False

    def holders(self) -> list[Any]:
        """Who else holds something that the next step depends on."""
        return [*self.regularizers, *([] if self.scale is None else [self.scale])]

    def identity(self) -> dict[str, Any]:
        """What makes this run this run: a checkpoint of another one is refused."""
        return {
            "tuner": self.tuner.name,
            "hyperparameters": self.tuner.hyperparameters,
            "classes": list(self.tuner.classes.names),
            "clip": self.tuner.clip.fingerprint(),
            "recipe": asdict(self.recipe),
            "regularizers": [regularizer.identity() for regularizer in self.regularizers],
        }

    def epoch(self, epoch: int) -> dict[str, Any]:
        """One pass over the loader; the mean of every loss."""
        rate = self.recipe.rate(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, float] = {}
        count, skipped = 0, 0 if self.scale is None else self.scale.skipped
        for step, batch in enumerate(self.loader):
            for name, value in self.step(epoch, step, batch).items():
                totals[name] = totals.get(name, 0.0) + value * len(batch.labels)
            count += len(batch.labels)
        if not count:
            raise ValueError("fit: the loader yields no samples")
        if not all(bool(torch.isfinite(p).all()) for p in self.learned):
            self.fail(f"what is learned is not finite after epoch {epoch}")
        self.tuner.on_epoch_end(epoch, self.recipe.epochs)
        means = {name: total / count for name, total in totals.items()}
        left_out = {} if self.scale is None else {"skipped": self.scale.skipped - skipped}
        return {"epoch": epoch, "rate": rate} | means | left_out

    def step(self, epoch: int, step: int, batch: Batch) -> dict[str, float]:
        """One step of the optimizer; the named losses over the whole batch."""
        who = f"fit: epoch {epoch}, step {step}"
        check_labels(who, batch.labels, len(batch.images), len(self.tuner.classes))
        self.optimizer.zero_grad()
        share, weight = _share(batch)
        losses = self.losses(share)
        factor = 1.0 if self.scale is None else self.scale.value
        scaled = {name: loss * factor for name, loss in losses.items()}
        self.tuner.backward(scaled, partial(self.average, weight=weight, factor=factor))
        values = self.values(losses, weight)
        if not all(math.isfinite(value) for value in values.values()):
            named = ", ".join(f"{name} = {value:g}" for name, value in values.items())
            self.fail(f"the loss is not finite at epoch {epoch}, step {step} ({named})")
        if self.accepted(epoch, step):
            for kept, parameter in zip(self.good, self.learned, strict=True):
                kept.copy_(parameter.detach())
            self.optimizer.step()
            self.tuner.on_step_end(Progress(epoch, step, values))
        if self.progress is not None and distributed.is_main():
            self.progress(epoch, step, values)
        if self.agreed if distributed.world() > 1 else self.asked:
            raise KeyboardInterrupt(f"fit: stopped after epoch {epoch}, step {step}")
        return values

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The named terms of the loss, penalties included."""
        device = self.tuner.clip.device
        images = batch.images.to(device, non_blocking=True)
        with torch.autocast(device.type, self.half, enabled=self.half is not None):
            out = self.tuner(images)
            with self.frozen.step(images, out):
                for regularizer in self.regularizers:
                    out = out._replace(logits=regularizer.logits(out))
                losses = self.tuner.losses(out, batch.labels.to(device, non_blocking=True))
                encode_text = self.tuner.step_encoder(out)
                for regularizer in self.regularizers:
                    losses[regularizer.name] = regularizer.penalty(out, encode_text)
        return losses

    def average(self, gradients: Iterable[Tensor], *, weight: float, factor: float) -> list[Tensor]:
        """Gradients, one per learned tensor, without the loss's factor, over all processes."""
        gradients = list(gradients)
        if factor != 1:
            gradients = [gradient / factor for gradient in gradients]
        if distributed.world() == 1:
            return gradients
        # a process without a row of its own adds nothing, not even what is not finite
        mine = torch.cat([g.flatten() for g in gradients])
        joint = distributed.sum_(mine * weight if weight else torch.zeros_like(mine))
        parts = joint.split([g.numel() for g in gradients])
        return [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]

    def values(self, losses: dict[str, Tensor], weight: float) -> dict[str, float]:
        """The losses over the samples of all processes."""
        values = torch.stack([loss.detach().double() for loss in losses.values()])
        if distributed.world() > 1:
            # the wish to stop is shared, so that all processes stop after the same step
            wish = torch.tensor([float(self.asked)], dtype=values.dtype, device=values.device)
            values = distributed.sum_(torch.cat([values * weight, wish]))
            self.agreed = bool(values[-1] > 0)
        return dict(zip(losses, values.tolist(), strict=False))

    def accepted(self, epoch: int, step: int) -> bool:
        """Whether the optimizer may take this step; float16 steps with infinite gradients not."""
        if self.scale is None:
            return True
        gradients = [p.grad for p in self.learned if p.grad is not None]
        if self.scale.accepts(gradients):
            return True
        where = f"epoch {epoch}, step {step}"
        _log.info("fit: %s left out, the factor on the loss becomes %g", where, self.scale.value)
        if self.scale.exhausted:
            self.fail(
                f"gradients are not finite at {where}, however small the loss is made for float16"
            )
        return False

    def say_what_was_left_out(self) -> None:
        """Log how many steps float16 could not take."""
        if self.scale is not None and self.scale.skipped and distributed.is_main():
            _log.warning(
                "fit: steps left out because float16 could not hold their gradients: %d; "
                "the factor on the loss ended at %g",
                self.scale.skipped,
                self.scale.value,
            )

    def fail(self, why: str) -> None:
        """Restore the state of the last finite loss and say what happened."""
        with torch.no_grad():
            for kept, parameter in zip(self.good, self.learned, strict=True):
                parameter.copy_(kept)
        way = "a smaller lr" if self.half is None else "a smaller lr or another precision,"
        raise TrainingDiverged(
            f"fit: {why}; the tuner holds the state of the last finite loss; "
            f"try {way} or look at that batch"
        )


def _share(batch: Batch) -> tuple[Batch, float]:
    """This process's rows of a batch and their part of it; without any, one row of weight 0."""
    rank, world, count = distributed.rank(), distributed.world(), len(batch.labels)
    mine = Batch(*(column[rank::world] for column in batch))
    if not len(mine.labels):
        return Batch(*(column[:1] for column in batch)), 0.0
    return mine, len(mine.labels) / count


def _generators(loader: Any, regularizers: Sequence[Regularizer]) -> list[torch.Generator]:
    """The different generators that the loader, its parts and the regularizers draw from."""
    sampler = getattr(loader, "sampler", None)
    owners = [loader, sampler, getattr(loader, "dataset", None), *regularizers]
    found = [getattr(owner, "generator", None) for owner in owners]
    generators = {id(g): g for g in found if isinstance(g, torch.Generator)}
    if isinstance(sampler, RandomSampler) and not generators:
        raise ValueError(
            "fit: the loader shuffles by the global random state; "
            "give it generator=torch.Generator()"
        )
    return list(generators.values())


@contextmanager
def _interruptible(run: _Run) -> Iterator[None]:
    """Let SIGINT end the run after the running step; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, frame: Any) -> None:
        if run.asked:
            raise KeyboardInterrupt
        run.asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)

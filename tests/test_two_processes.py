"""Training and prediction under two processes give what one process gives."""

import os
from dataclasses import replace
from unittest.mock import patch

import torch
import torch.multiprocessing
from torch.utils.data import DataLoader

from tests.test_training import CLASSES, SHORT, Pull, data, loader, state
from vlcal import distributed
from vlcal.clip import tiny_clip
from vlcal.prediction import predict
from vlcal.regularizers import Regularizer
from vlcal.training import fit
from vlcal.tuners import TUNERS, CoCoOp, CoOp, ProGrad, Recipe, ZeroShot, precision
from vlcal.types import Batch, ClassSet


class Rows(torch.utils.data.Dataset):
    def __init__(self):
        features, self.labels = data()
        self.features = features[0]

    def __len__(self):
        return 10

    def __getitem__(self, row):
        return self.features[row], self.labels[row], row


def collate(rows):
    features, labels, indices = zip(*rows, strict=True)
    return Batch(torch.stack(features), torch.stack(labels), torch.tensor(indices))


class Away(Regularizer):
    """Pulls the classes away from where the zero-shot model wants them, so that ProGrad objects."""

    name = "away"

    def penalty(self, out, encode_text):
        return 3 * torch.nn.functional.cross_entropy(out.logits, 3 - out.logits.argmax(-1))


class Steep(Regularizer):
    """Infinite gradients in some steps, in one process only: the one that has row 9."""

    name = "steep"
    steps = 0

    def penalty(self, out, encode_text):
        self.steps += 1
        rows = data()[0][:, 9]
        mine = bool((out.image_features[:, None] == rows).all(-1).any())
        zero = out.text_features.sum() * 0
        return zero.square().sqrt() if mine and self.steps < 5 else zero


def aligned_scenario(clip):
    """A method that compares two gradients: both must be those of all processes."""
    tuner = ProGrad(clip, ClassSet(CLASSES.names), n_ctx=6).double()
    fit(tuner, loader(3), SHORT, [Away()], seed=1)
    return state(tuner)


def every_tuner():
    """What each tuner learns from images; the last batch has none for the second process."""
    clip, learned = tiny_clip(0).double(), {}
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    labels, rows = torch.arange(5) % 4, torch.arange(5)
    batches = [Batch(images, labels, rows), Batch(images[:1], labels[:1], rows[:1])]
    for cls in TUNERS[1:]:
        tuner = cls(clip, CLASSES).double()
        # words under the context of an image are those of this process's last image
        terms = [Pull()] if cls.learns_text and cls is not CoCoOp else []
        fit(tuner, batches, Recipe(epochs=1, warmup_lr=1e-3), terms)
        learned[cls.name] = state(tuner)
    return learned


def half_scenario():
    """Float16 with a step that one process alone could not take."""
    tuner = CoOp(tiny_clip(0), CLASSES, n_ctx=4)
    recipe = replace(SHORT, lr=0.002, precision="fp16")
    with patch.object(precision, "START", 2.0**8):
        history = fit(tuner, loader(3), recipe, [Steep()], seed=1)
    assert bool(state(tuner).isfinite().all())
    return torch.tensor([row["skipped"] for row in history])


def one_scenario(clip):
    """What both one and two processes do: train, predict from a DataLoader, predict from a list."""
    tuner = CoOp(clip, CLASSES, n_ctx=4).double()
    # batches of 3, 3, 3 and 1: the second process has no row of the last one
    history = fit(tuner, loader(3), SHORT, [Pull()], seed=1)
    sequential = DataLoader(Rows(), batch_size=3, collate_fn=collate)
    from_files = predict(tuner, sequential, ZeroShot(clip, CLASSES))
    from_list = predict(tuner, list(sequential)[:1])
    return {
        "state": state(tuner),
        "losses": torch.tensor([[row["cross_entropy"], row["pull"]] for row in history]),
        "logits": from_files.logits,
        "labels": from_files.labels,
        "zero_shot": from_files.zero_shot.logits,
        "one_batch": from_list.logits,
        "aligned": aligned_scenario(clip),
        "skipped": half_scenario(),
        **every_tuner(),
    }


def worker(rank, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    distributed.setup()
    torch.save(one_scenario(tiny_clip(0)), f"{folder}/{rank}.pt")
    distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_do_what_one_does(tmp_path):
    expected = one_scenario(tiny_clip(0))
    assert expected["skipped"].tolist() == [1, 0, 0, 0]
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)

"""Training and prediction under two processes give what one process gives."""

import os

import torch
import torch.multiprocessing
from torch.utils.data import DataLoader

from tests.test_training import CLASSES, SHORT, Pull, data, loader, state
from vlcal import distributed
from vlcal.clip import tiny_clip
from vlcal.prediction import predict
from vlcal.training import fit
from vlcal.tuners import CoOp, ZeroShot
from vlcal.types import Batch


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
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)

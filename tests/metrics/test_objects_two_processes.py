"""Two processes with uneven shards and repeated samples find the bits that one process finds."""

import sys

import pytest
import torch
import torch.multiprocessing

N, C = 101, 5


def data():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(N, C, generator=generator) * 4
    return logits, torch.randint(C, (N,), generator=generator)


def objects():
    from vlcal.metrics.objects import (
        BrierScore,
        CalibrationError,
        ClasswiseCalibrationError,
        ConfidenceAUROC,
    )

    return {
        "ece": CalibrationError("logits"),
        "dac": CalibrationError("logits", convention="dac2024"),
        "classwise": ClasswiseCalibrationError("logits", C),
        "brier": BrierScore("logits"),
        "auroc": ConfidenceAUROC("logits"),
    }


def padded(rank):
    """What a sampler that fills up the last rows gives: every second row, repeated to 52 each."""
    rows = torch.arange(rank, N, 2)
    repeated = torch.cat([rows, rows[: 52 - len(rows)]])
    return repeated, torch.arange(52) < len(rows)


def uneven(rank):
    rows = torch.arange(7) if rank else torch.arange(7, N)
    return rows, torch.ones(len(rows), dtype=torch.bool)


def worker(rank, folder, hidden):
    if hidden:
        sys.modules["torchmetrics"] = None
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    logits, labels = data()
    found = {}
    for shard in (padded, uneven):
        rows, mask = shard(rank)
        for name, metric in objects().items():
            steps = (part.split(9) for part in (logits[rows], labels[rows], mask))
            for preds, target, keep in zip(*steps, strict=True):
                metric.update(preds, target, mask=keep)
            own = [value.clone() for value in metric.metric_state.values()]
            result = metric.result()
            found[f"{shard.__name__} {name}"] = (metric.compute(), result.value, result.n)
            # the states of this process are back
            for before, after in zip(own, metric.metric_state.values(), strict=True):
                assert torch.equal(before, after)
    from vlcal.metrics.objects import Accuracy

    other = Accuracy("logits", nan="drop" if rank else "error")
    other.update(logits, labels)
    for ask in (other.compute, other.result):
        try:
            ask()
        except RuntimeError as error:
            found["refusal"] = str(error)
        # the states of this process are back
        assert int(other.sums[0]) == N
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("hidden", [False, True], ids=["torchmetrics", "alone"])
def test_two_processes_find_what_one_finds(tmp_path, hidden):
    expected = {}
    for name, metric in objects().items():
        metric.update(*data())
        expected[name] = metric.compute()
    torch.multiprocessing.spawn(worker, (str(tmp_path), hidden), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert "the processes count by different rules" in found.pop("refusal")
        assert len(found) == 2 * len(expected)
        for key, (value, result, n) in found.items():
            assert torch.equal(value, expected[key.split()[1]]), key
            assert (result, n) == (float(value), N), key

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


def measured(rank, shard):
    """Value, result and count of every object over the shards of both processes."""
    (logits, labels), (rows, mask) = data(), shard(rank)
    found = {}
    for name, metric in objects().items():
        steps = (part.split(9) for part in (logits[rows], labels[rows], mask))
        for preds, target, keep in zip(*steps, strict=True):
            metric.update(preds, target, mask=keep)
        own = [value.clone() for value in metric.metric_state.values()]
        result = metric.result()
        found[name] = (metric.compute(), result.value, result.n)
        # the states of this process are back
        for before, after in zip(own, metric.metric_state.values(), strict=True):
            assert torch.equal(before, after)
    return found


def refused(rank):
    """What is said where the processes count by different rules."""
    from vlcal.metrics.objects import Accuracy

    metric = Accuracy("logits", nan="drop" if rank else "error")
    metric.update(*data())
    sentences = []
    for ask in (metric.compute, metric.result):
        with pytest.raises(RuntimeError) as caught:
            ask()
        sentences.append(str(caught.value))
        # the states of this process are back
        assert int(metric.sums[0]) == N
    return sentences


def worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    found = {}
    for base in ("alone", "torchmetrics"):
        # the base class is chosen when the objects are imported
        for module in [name for name in sys.modules if name.startswith("vlcal.metrics.objects")]:
            del sys.modules[module]
        sys.modules.pop("torchmetrics", None)
        if base == "alone":
            sys.modules["torchmetrics"] = None
        found[base] = {
            "base": [each.__module__.partition(".")[0] for each in type(objects()["ece"]).__mro__],
            "padded": measured(rank, padded),
            "uneven": measured(rank, uneven),
            "refused": refused(rank),
        }
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_find_what_one_finds(tmp_path):
    expected = {}
    for name, metric in objects().items():
        metric.update(*data())
        value = metric.compute()
        expected[name] = (value, float(value), N)
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        every = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for base, found in every.items():
            assert ("torchmetrics" in found["base"]) == (base == "torchmetrics")
            assert found["padded"] == expected, base
            assert found["uneven"] == expected, base
            assert all("count by different rules" in sentence for sentence in found["refused"])

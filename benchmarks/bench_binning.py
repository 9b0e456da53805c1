"""Calibration errors from confidences and from logits, against what people use for them."""

import pytest
import torch

from benchmarks import peers, workloads
from benchmarks.measure import Provider
from vlcal import ops


@pytest.mark.parametrize("workload", workloads.CONFIDENCES, ids=str)
def bench_bin_statistics(bench, workload):
    confidence, correct = workloads.confidences(workload.n)
    bench.check("bin_statistics", confidence[:100_000], correct[:100_000])
    truth = ops.bin_statistics(confidence, correct, backend="reference").ece()

    def ours():
        return ops.bin_statistics(confidence, correct).ece()

    target = 25 if workload.n <= 1_000_000 else 40
    others = [
        Provider("vlcal, avx2", ours, isa="avx2"),
        Provider("vlcal, portable", ours, isa="portable"),
        Provider(
            "torchmetrics",
            lambda: peers.torchmetrics_ece(confidence, correct),
            target,
            missing=peers.missing("torchmetrics"),
        ),
        Provider(
            "netcal",
            lambda: peers.netcal_ece(confidence, correct),
            missing=peers.missing("netcal"),
        ),
        Provider("torch scatter_add", lambda: peers.scatter_ece(confidence, correct), 4),
        Provider("numpy bincount", lambda: peers.bincount_ece(confidence, correct), 4),
        Provider("loop over bins", lambda: peers.mask_loop_ece(confidence, correct)),
    ]
    bench.compare(
        "bin_statistics",
        workload,
        [Provider("vlcal", ours), *others],
        error=lambda ece: abs(ece - truth),
    )
    both = Provider("vlcal, 2 threads", ours, threads=2)
    bench.compare("bin_statistics", workload, [both, Provider("vlcal, 1 thread", ours)])


def bench_float32_counters_stop(bench):
    """40 million samples of confidence 0.97 and accuracy 0.95: ECE is 0.02."""
    n = 40_000_000
    workload = workloads.Workload("4e7 in one bin", "beyond 2^24 samples in a bin", n, full=True)
    if not bench.full:
        pytest.skip("large workload: --full runs it")
    confidence = torch.full((n,), 0.97)
    correct = torch.arange(n) % 100 < 95
    bench.check("bin_statistics")
    bench.compare(
        "bin_statistics",
        workload,
        [
            Provider("vlcal", lambda: ops.bin_statistics(confidence, correct).ece()),
            Provider(
                "torchmetrics",
                lambda: peers.torchmetrics_ece(confidence, correct),
                missing=peers.missing("torchmetrics"),
            ),
        ],
        error=lambda ece: abs(ece - 0.02),
    )

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

    slow = "minutes at this size" if workload.n > 10_000_000 else None
    target, one_liner = (25, 4) if workload.n <= 1_000_000 else (40, 15)
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
            missing=peers.missing("netcal") or slow,
        ),
        Provider("torch scatter_add", lambda: peers.scatter_ece(confidence, correct), one_liner),
        Provider("numpy bincount", lambda: peers.bincount_ece(confidence, correct), one_liner),
        Provider("loop over bins", lambda: peers.mask_loop_ece(confidence, correct), missing=slow),
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


@pytest.mark.parametrize("workload", workloads.CONFIDENCES[:2], ids=str)
@pytest.mark.parametrize("ties", ["together", "order"])
def bench_equal_mass(bench, workload, ties):
    confidence, correct = workloads.confidences(workload.n)
    bench.check("equal_mass_statistics", confidence[:100_000], correct[:100_000], ties=ties)
    truth = ops.equal_mass_statistics(confidence, correct, ties=ties, backend="reference").ece()

    def ours():
        return ops.equal_mass_statistics(confidence, correct, ties=ties).ece()

    named = workload.named(f"{workload.name}, ties {ties}")
    bench.compare(
        "equal_mass_statistics",
        named,
        [
            Provider("vlcal", ours),
            Provider("torch sort", lambda: peers.sorted_equal_mass_ece(confidence, correct), 20),
            Provider("numpy key sort", lambda: peers.key_sort_ece(confidence, correct), 1.5),
        ],
        error=lambda ece: abs(ece - truth),
    )


@pytest.mark.parametrize("workload", workloads.LOGITS, ids=str)
def bench_metrics_from_logits(bench, workload):
    """ECE, accuracy, NLL and Brier score of stored logits, against torchmetrics' ECE alone."""
    logits, labels = workloads.logits(workload.n, workload.classes)
    bench.check("softmax_statistics", logits[:1000], labels[:1000])

    def ours():
        out = ops.softmax_statistics(logits, labels)
        assert out.log_likelihood is not None
        correct = out.predicted == labels
        brier = out.sum_squares - 2 * out.log_likelihood.exp() + 1
        ece = ops.bin_statistics(out.confidence, correct).ece()
        nll = -float(out.log_likelihood.mean())
        return ece, float(correct.float().mean()), nll, float(brier.mean())

    truth = peers.softmax_metrics(logits.double(), labels)[0]
    bench.compare(
        "softmax_statistics",
        workload,
        [
            Provider("vlcal", ours),
            Provider("vlcal, avx2", ours, isa="avx2"),
            Provider("vlcal, portable", ours, isa="portable"),
            Provider(
                "torchmetrics, ECE only",
                lambda: [peers.torchmetrics_ece_of_logits(logits, labels)],
                15,
                missing=peers.missing("torchmetrics"),
            ),
            Provider("torch, all four", lambda: peers.softmax_metrics(logits, labels)),
        ],
        error=lambda metrics: abs(metrics[0] - truth),
    )
    both = Provider("vlcal, 2 threads", ours, threads=2)
    bench.compare("softmax_statistics", workload, [both, Provider("vlcal, 1 thread", ours)])


@pytest.mark.parametrize("workload", workloads.LOGITS, ids=str)
def bench_classwise(bench, workload):
    logits, labels = workloads.logits(workload.n, workload.classes)
    probs = logits.softmax(-1)
    bench.check("classwise_statistics", probs[:500], labels[:500])
    bench.compare(
        "classwise_statistics",
        workload,
        [
            Provider("vlcal", lambda: ops.classwise_statistics(probs, labels).errors().mean()),
            Provider("numpy loop over classes", lambda: peers.classwise_ece(probs, labels)),
        ],
    )

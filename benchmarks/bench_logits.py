"""Softmax outputs, row statistics and cross-entropy of cosine logits that are never stored."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks import peers, workloads
from benchmarks.measure import Provider
from vlcal import ops

FORWARD_TARGETS = {1000: 2.3, 10_000: 2.5}


def inputs(workload):
    images, classes = workload.features()
    generator = torch.Generator().manual_seed(2)
    scale = 50 + 100 * torch.rand(workload.n, generator=generator)
    labels = torch.randint(workload.classes, (workload.n,), generator=generator)
    return images, classes, scale, labels


@pytest.mark.parametrize("workload", workloads.FUSED, ids=str)
def bench_calibrated_softmax(bench, workload):
    images, classes, scale, labels = inputs(workload)
    small = {"row_scale": scale[:40], "labels": labels[:40]}
    bench.check("calibrated_softmax", images[:40], classes, 1.0, **small)
    rows = slice(0, min(workload.n, 200))
    truth = ops.calibrated_softmax(
        images[rows].double(), classes.double(), 1.0, row_scale=scale[rows].double()
    ).confidence

    def ours():
        return ops.calibrated_softmax(images, classes, 1.0, row_scale=scale, labels=labels)

    big = workload.n * workload.classes > 500_000_000 or workload.classes >= 100_000
    compiled = torch.compile(peers.naive_outputs)
    providers = [
        Provider("vlcal", ours),
        Provider("vlcal, avx2", ours, isa="avx2"),
        Provider(
            "torch, naive",
            lambda: peers.naive_outputs(images, classes, scale, labels),
            FORWARD_TARGETS.get(workload.classes),
            missing="the logits take gigabytes" if big else None,
        ),
        Provider(
            "torch, in chunks",
            lambda: peers.chunked_outputs(images, classes, scale, labels),
            2.8 if workload.classes == 100_000 else None,
        ),
        Provider(
            "torch.compile",
            lambda: compiled(images, classes, scale, labels),
            2.2 if workload.classes == 10_000 else None,
            missing="the logits take gigabytes" if big else None,
            full=True,
        ),
    ]
    work = (2.0 * workload.n * workload.classes * workload.dim, "float32")
    bench.compare("calibrated_softmax", workload, providers, confidence_error(truth), work=work)
    both = Provider("vlcal, 2 threads", ours, threads=2)
    bench.compare("calibrated_softmax", workload, [both, Provider("vlcal, 1 thread", ours, 1.8)])


def confidence_error(truth):
    """Largest error of the confidences of the first rows."""

    def error(result):
        confidence = result[1][: len(truth)].double()
        return float((confidence - truth).abs().max())

    return error


def bench_logit_statistics(bench):
    """What contrast-aware and sample-adaptive calibration read of two models."""
    workload = workloads.FUSED[0]
    images, classes, _, _ = inputs(workload)
    other = (workloads.clip_like(workload.n, 512, 8), workloads.clip_like(workload.classes, 512, 9))
    bench.check(
        "logit_statistics",
        images[:40],
        classes,
        100.0,
        tuple(x[:40] for x in other[:1]) + other[1:],
    )

    def plain():
        tuned, frozen = images @ classes.T * 100.0, other[0] @ other[1].T * 100.0
        return *tuned.max(-1), tuned.amin(-1), (tuned - frozen).abs().mean(-1)

    bench.compare(
        "logit_statistics",
        workload,
        [
            Provider("vlcal", lambda: ops.logit_statistics(images, classes, 100.0, other)),
            Provider("torch, naive", plain),
        ],
    )


@pytest.mark.parametrize("workload", workloads.TRAINING, ids=str)
def bench_cross_entropy(bench, workload):
    """Forward and backward, gradients of both features."""
    images, classes, _, labels = inputs(workload)
    grad = [x.clone().requires_grad_() for x in (images[:60], classes)]
    bench.check("cosine_cross_entropy", *grad, labels[:60], 100.0)

    def ours():
        x, c = (t.detach().requires_grad_() for t in (images, classes))
        loss = ops.cosine_cross_entropy(x, c, labels, 100.0)
        loss.backward()
        return loss.detach()

    truth = float(F.cross_entropy(images.double() @ classes.double().T * 100.0, labels))
    fused = None if hasattr(F, "linear_cross_entropy") else "this torch has no linear_cross_entropy"
    bench.compare(
        "cosine_cross_entropy",
        workload,
        [
            Provider("vlcal", ours),
            Provider("torch, naive", lambda: peers.naive_step(images, classes, 100.0, labels), 2.0),
            Provider(
                "F.linear_cross_entropy",
                lambda: peers.linear_cross_entropy_step(images, classes, 100.0, labels),
                1.8,
                missing=fused,
            ),
        ],
        error=lambda loss: abs(float(loss) - truth),
        work=(6.0 * workload.n * workload.classes * workload.dim, "float32"),
    )

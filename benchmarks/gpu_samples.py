"""GPU workloads on confidences, probabilities and points: calls and gates."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.gpu_clock import Run
from tests.oracle import assert_as_good_as_reference
from vlcal import ops


def _sure(n: int, device: str) -> list[tuple[Tensor, Tensor]]:
    """Two sets of confidences of a sure model, and what is correct."""
    made = []
    for seed in (1, 2):
        generator = torch.Generator(device).manual_seed(seed)
        confidence = torch.rand(n, generator=generator, device=device).square_()
        confidence.mul_(-0.97).add_(1)
        right = torch.rand(n, generator=generator, device=device) < confidence - 0.03
        made.append((confidence, right))
    return made


def _bincount(confidence: Tensor, correct: Tensor) -> float:
    index = (confidence * 15).ceil().long().clamp(1, 15) - 1
    total = torch.bincount(index, confidence, 15) - torch.bincount(index, correct.float(), 15)
    return float(total.abs().sum() / len(confidence))


def ece(n: int, device: str) -> Run:
    samples = _sure(n, device)

    def gate(backend: str) -> None:
        part = (samples[0][0][:1_000_003], samples[0][1][:1_000_003])
        assert_as_good_as_reference(ops.bin_statistics, part, {}, backend, exact=True)
        # in any split the same integers
        confidence, correct = samples[0]
        whole = ops.bin_statistics(confidence, correct, backend=backend)
        halves = [
            ops.bin_statistics(confidence[half], correct[half], backend=backend)
            for half in (slice(0, n // 3), slice(n // 3, None))
        ]
        assert torch.equal(whole.table, (halves[0] + halves[1]).table)

    def ours(backend: str, i: int) -> float:
        return ops.bin_statistics(*samples[i % 2], backend=backend).ece()

    calls = {
        "triton": partial(ours, "triton"),
        "cuda": partial(ours, "cuda"),
        "torchmetrics": lambda i: peers.torchmetrics_ece(*samples[i % 2]),
        "torch.bincount": lambda i: _bincount(*samples[i % 2]),
    }
    return Run(calls, gate, {"torchmetrics": peers.missing("torchmetrics")})


def equal_mass(n: int, device: str) -> Run:
    samples = _sure(n, device)

    def gate(backend: str) -> None:
        part = (samples[0][0][:1_000_003], samples[0][1][:1_000_003])
        assert_as_good_as_reference(ops.equal_mass_statistics, part, {}, backend, exact=True)

    def ours(backend: str, i: int) -> float:
        return ops.equal_mass_statistics(*samples[i % 2], backend=backend).ece()

    calls = {
        "triton": partial(ours, "triton"),
        "cuda": partial(ours, "cuda"),
        "torch.sort": lambda i: peers.sorted_equal_mass_ece(*samples[i % 2]),
    }
    return Run(calls, gate, {})


def classwise(n: int, classes: int, device: str) -> Run:
    generator = torch.Generator(device).manual_seed(1)
    logits = 2 * torch.randn(n, classes, generator=generator, device=device)
    labels = torch.arange(n, device=device) % classes
    probs = [logits.softmax(-1), logits.flip(0).softmax(-1)]
    column = torch.arange(classes, device=device)

    def ours(backend: str, i: int) -> Any:
        return ops.classwise_statistics(probs[i % 2], labels, backend=backend).errors()

    def bincount(i: int) -> Any:
        bins = (probs[i % 2] * 15).ceil().long().clamp(1, 15) - 1
        index = (bins + 15 * column).flatten()
        right = (labels[:, None] == column).flatten().float()
        values = probs[i % 2].flatten(), right
        return [torch.bincount(index, value, 15 * classes) for value in values]

    def gate(backend: str) -> None:
        part = (probs[0][:2000], labels[:2000])
        assert_as_good_as_reference(ops.classwise_statistics, part, {}, backend, exact=True)

    return Run({"triton": partial(ours, "triton"), "torch.bincount": bincount}, gate, {})


def softmax_stored(n: int, classes: int, device: str) -> Run:
    generator = torch.Generator(device).manual_seed(1)
    logits = 4 * torch.randn(n, classes, generator=generator, device=device)
    logits = [logits, logits.flip(0)]
    labels = torch.arange(n, device=device) % classes

    def ours(backend: str, i: int) -> Any:
        return ops.softmax_statistics(logits[i % 2], labels, backend=backend)

    def plain(i: int) -> Any:
        log_probs = logits[i % 2].log_softmax(-1)
        probs = log_probs.exp()
        squares, likelihood = probs.square().sum(-1), log_probs.gather(1, labels[:, None])
        return probs.max(-1), -(probs * log_probs).sum(-1), squares, likelihood

    def gate(backend: str) -> None:
        part = (logits[0][:2000], labels[:2000])
        assert_as_good_as_reference(ops.softmax_statistics, part, {}, backend)

    return Run({"triton": partial(ours, "triton"), "torch, all four": plain}, gate, {})


def density(n: int, m: int, device: str) -> Run:
    generator = torch.Generator(device).manual_seed(1)

    def plane(rows: int) -> Tensor:
        values = torch.rand(rows, 2, generator=generator, device=device)
        values[:, 0].sqrt_()
        return values

    queries, points = [plane(n), plane(n)], plane(m)
    h = torch.tensor([0.04, 0.05], dtype=torch.float64, device=device)
    factor = (0.5**0.5 / h).float()
    peak = float(1 / (2 * torch.pi * h.prod() * m))

    def ours(backend: str, i: int) -> Tensor:
        return ops.kernel_density(queries[i % 2], points, h, backend=backend)

    def plain(queries: Tensor) -> Tensor:
        u = (queries[:, None] - points) * factor
        return (-u.square().sum(-1)).exp().sum(-1) * peak

    def blocks(i: int) -> Tensor:
        # 2 q.p - |q|^2 - |p|^2 as one product of four columns, the exponentials in its place
        q, p = queries[i % 2] * factor, points * factor
        lengths = [-each.square().sum(-1, keepdim=True) for each in (q, p)]
        rows = torch.cat([2 * q, lengths[0], torch.ones_like(lengths[0])], 1)
        columns = torch.cat([p, torch.ones_like(lengths[1]), lengths[1]], 1).T.contiguous()
        sums = [(some @ columns).exp_().sum(-1) for some in rows.split(max(1, (1 << 28) // m))]
        return torch.cat(sums) * peak

    def gate(backend: str) -> None:
        part = (queries[0][:1000], points, h)
        assert_as_good_as_reference(ops.kernel_density, part, {}, backend, exact=True)

    compiled = cache(lambda: torch.compile(plain, dynamic=False))
    calls = {
        "triton": partial(ours, "triton"),
        "torch in blocks": blocks,
        "torch.compile": lambda i: compiled()(queries[i % 2]),
    }
    return Run(calls, gate, {})

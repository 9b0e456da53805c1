"""The workloads of `gpu_plan.PLAN`: our calls, the peers' calls, and the gate before them.

Everything takes its sizes and its device, so that the same code runs small on a CPU in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import peers
from tests.oracle import assert_as_good_as_reference
from vlcal import ops

TAU = 100.0


class Run(NamedTuple):
    """One comparison, ready.

    Args:
        calls: what to time, by name: ours by the name of the backend. A call takes the number of
            the round and uses other inputs than in the round before.
        gate: raises AssertionError if a backend is wrong on a part of these inputs.
        missing: why a peer cannot run.
    """

    calls: dict[str, Callable[[int], Any]]
    gate: Callable[[str], None]
    missing: dict[str, str | None]


def features(n: int, dim: int, seed: int, device: str) -> Tensor:
    """Unit rows with a common component, made on the device."""
    generator = torch.Generator(device).manual_seed(seed)
    rows = torch.randn(n, dim, generator=generator, device=device)
    rows += 1.7 * torch.randn(dim, generator=torch.Generator(device).manual_seed(7), device=device)
    return F.normalize(rows, dim=-1)


def knn(n: int, m: int, dim: int, k: int, device: str) -> Run:
    keys = features(m, dim, 0, device)
    queries = [features(n, dim, seed, device) for seed in (1, 2, 3)]
    half_keys = keys.half()
    half_queries = [value.half() for value in queries]

    @cache
    def index(backend: str) -> ops.SearchIndex:
        return ops.SearchIndex(keys, backend=backend)

    def ours(backend: str, i: int) -> Any:
        return index(backend).knn(queries[i % 3], k)

    def topk(queries: list[Tensor], keys: Tensor, i: int) -> Any:
        return peers.torch_topk(queries[i % 3], keys, k, rows=256)

    def gate(backend: str) -> None:
        part = queries[0][:17]
        got = index(backend).knn(part, k)
        true = ops.knn(part, keys, k, backend="reference")
        assert torch.equal(got.index, true.index), f"{backend} gives other neighbors"
        assert torch.equal(got.distance, true.distance), f"{backend} gives other distances"

    calls = {
        "triton": partial(ours, "triton"),
        "cuda": partial(ours, "cuda"),
        "torch fp32 mm + topk": partial(topk, queries, keys),
        "torch fp16 mm + topk, inexact": partial(topk, half_queries, half_keys),
    }
    return Run(calls, gate, {})


def softmax(n: int, classes: int, dim: int, precision: Any, device: str) -> Run:
    text = features(classes, dim, 0, device)
    images = [features(n, dim, seed, device) for seed in (1, 2, 3)]
    labels = torch.arange(n, device=device) % classes
    half_text, half_images = text.bfloat16(), [image.bfloat16() for image in images]

    def ours(backend: str, i: int) -> Any:
        options = {"precision": precision, "labels": labels, "backend": backend}
        return ops.calibrated_softmax(images[i % 3], text, TAU, **options)

    def naive(images: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        logits = images @ text.T * TAU
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()
        confidence, predicted = probs.max(-1)
        entropy = -(probs * log_probs).sum(-1)
        likelihood = log_probs.gather(1, labels[:, None])
        return predicted, confidence, entropy, likelihood, probs.square().sum(-1)

    def gate(backend: str) -> None:
        part = images[0][:64]
        got = ops.calibrated_softmax(part, text, TAU, precision=precision, backend=backend)
        true = ops.calibrated_softmax(part.double(), text.double(), TAU, backend="reference")
        assert torch.equal(got.predicted, true.predicted), f"{backend} predicts other classes"
        error = float((got.confidence.double() - true.confidence).abs().max())
        most = {"accurate": 5e-5, "fast": 2e-3}[precision]
        assert error <= most, f"{backend}: error {error:.2g} of a confidence"

    compiled = cache(lambda: torch.compile(naive, dynamic=False))
    calls = {
        "triton": partial(ours, "triton"),
        "torch fp32 mm + softmax + max": lambda i: naive(images[i % 3], text),
        "torch bf16 mm + softmax + max": lambda i: naive(half_images[i % 3], half_text),
        "torch.compile, bf16": lambda i: compiled()(half_images[i % 3], half_text),
    }
    return Run(calls, gate, {})


def loss(n: int, classes: int, dim: int, device: str) -> Run:
    text = features(classes, dim, 0, device)
    images = [features(n, dim, seed, device) for seed in (1, 2, 3)]
    labels = torch.arange(n, device=device) % classes

    def step(head: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, i: int) -> Any:
        image = images[i % 3].to(dtype).requires_grad_()
        weight = text.to(dtype).requires_grad_()
        return torch.autograd.grad(head(image, weight), (image, weight))

    def ours(backend: str, image: Tensor, weight: Tensor) -> Tensor:
        options: Any = {"precision": "fast", "backend": backend}
        return ops.cosine_cross_entropy(image, weight, labels, TAU, **options)

    def naive(image: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(image @ weight.T * TAU, labels)

    def liger(image: Tensor, weight: Tensor) -> Tensor:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        return LigerFusedLinearCrossEntropyLoss()(weight, image * TAU, labels)

    def cut(image: Tensor, weight: Tensor) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy

        return linear_cross_entropy(image * TAU, weight, labels)

    def gate(backend: str) -> None:
        part = slice(0, 256)
        got, true = [], []
        for dtype, name, to in ((torch.float32, backend, got), (torch.float64, "reference", true)):
            image, weight = (x.to(dtype).requires_grad_() for x in (images[0][part], text))
            options: Any = {"precision": "fast", "backend": name}
            value = ops.cosine_cross_entropy(image, weight, labels[part], TAU, **options)
            to += [value.detach(), *torch.autograd.grad(value, (image, weight))]
        for ours, exact in zip(got, true, strict=True):
            error = float((ours.double() - exact).abs().max() / exact.abs().max())
            assert error <= 1e-2, f"{backend}: relative error {error:.2g}"

    bf16 = torch.bfloat16
    calls = {
        "triton": partial(step, partial(ours, "triton"), torch.float32),
        "torch bf16 naive": partial(step, naive, bf16),
        "Liger fused linear cross-entropy, bf16": partial(step, liger, bf16),
        "cut-cross-entropy, bf16": partial(step, cut, bf16),
    }
    missing = {
        "Liger fused linear cross-entropy, bf16": peers.missing("liger_kernel.transformers"),
        "cut-cross-entropy, bf16": peers.missing("cut_cross_entropy"),
    }
    return Run(calls, gate, missing)


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
        whole = ops.bin_statistics(*samples[0], backend=backend)
        halves = [
            ops.bin_statistics(*(x[half] for x in samples[0]), backend=backend)
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


RUNS: dict[tuple[str, str], Callable[[str], Run]] = {
    ("knn", "1000 in 1M, d=512, K=10"): partial(knn, 1000, 1_000_000, 512, 10),
    ("knn", "100 in 1M, d=512, K=10"): partial(knn, 100, 1_000_000, 512, 10),
    ("calibrated_softmax", "50k x 1000, fast"): partial(softmax, 50_000, 1000, 512, "fast"),
    ("calibrated_softmax", "10k x 100k, fast"): partial(softmax, 10_000, 100_000, 512, "fast"),
    ("calibrated_softmax", "50k x 1000, accurate"): partial(softmax, 50_000, 1000, 512, "accurate"),
    ("calibrated_softmax", "10k x 100k, accurate"): partial(
        softmax, 10_000, 100_000, 512, "accurate"
    ),
    ("cosine_cross_entropy", "32k x 32k, forward and backward, fast"): partial(
        loss, 32_768, 32_768, 512
    ),
    ("cosine_cross_entropy", "10k x 100k, forward and backward, fast"): partial(
        loss, 10_000, 100_000, 512
    ),
    ("bin_statistics", "ECE of 1e8 confidences"): partial(ece, 100_000_000),
    ("equal_mass_statistics", "1e8 confidences, ties together"): partial(equal_mass, 100_000_000),
    ("classwise_statistics", "50k x 1000"): partial(classwise, 50_000, 1000),
    ("softmax_statistics", "50k x 1000"): partial(softmax_stored, 50_000, 1000),
}

"""GPU workloads on features: our calls, the peers' calls, and the gate before them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import peers
from benchmarks.gpu_clock import Run
from vlcal import ops

TAU = 100.0


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

"""What is timed on a GPU: calls of ours and of the peers on inputs made there, and a gate for each.

A call takes the number of the round and uses other inputs than in the round before.
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

Call = Callable[[int], Any]


class Run(NamedTuple):
    """Calls by the name of the backend or the peer; `gate(backend)` raises if one is wrong."""

    calls: dict[str, Call]
    gate: Callable[[str], None]


def rows(n: int, dim: int, device: str, sets: int = 3) -> list[Tensor]:
    """Sets of unit rows with a common component."""
    generator = torch.Generator(device).manual_seed(n)
    center = 1.7 * torch.randn(dim, generator=torch.Generator(device).manual_seed(7), device=device)
    made = torch.randn(sets, n, dim, generator=generator, device=device) + center
    return list(F.normalize(made, dim=-1))


def knn(n: int, m: int, dim: int, k: int, device: str) -> Run:
    queries, (keys,) = rows(n, dim, device), rows(m, dim, device, 1)
    half_keys, half = keys.half(), [value.half() for value in queries]
    index = cache(lambda backend: ops.SearchIndex(keys, backend=backend))

    def gate(backend: str) -> None:
        got = index(backend).knn(queries[0][:40], k)
        true = ops.knn(queries[0][:40], keys, k, backend="reference")
        assert torch.equal(got.index, true.index), "other neighbors"
        assert torch.equal(got.distance, true.distance), "other distances"

    calls: dict[str, Call] = {
        "triton": lambda i: index("triton").knn(queries[i % 3], k),
        "cuda": lambda i: index("cuda").knn(queries[i % 3], k),
        "torch fp16 mm + topk, inexact": lambda i: peers.torch_topk(half[i % 3], half_keys, k, 256),
        "torch fp32 mm + topk": lambda i: peers.torch_topk(queries[i % 3], keys, k, 256),
    }
    return Run(calls, gate)


def softmax(n: int, classes: int, dim: int, precision: Any, device: str) -> Run:
    images, (text,) = rows(n, dim, device), rows(classes, dim, device, 1)
    labels = torch.arange(n, device=device) % classes
    half_text, half = text.bfloat16(), [image.bfloat16() for image in images]

    def naive(images: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        logits = images @ text.T * 100.0
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()
        confidence, predicted = probs.max(-1)
        entropy = -(probs * log_probs).sum(-1)
        likelihood = log_probs.gather(1, labels[:, None])
        return predicted, confidence, entropy, likelihood, probs.square().sum(-1)

    def two_steps(i: int) -> Any:
        logits = torch.mm(half[i % 3], half_text.T).float() * 100.0
        return ops.softmax_statistics(logits, labels, backend="triton")

    def gate(backend: str) -> None:
        part = images[0][:64]
        got = ops.calibrated_softmax(part, text, 100.0, precision=precision, backend=backend)
        true = ops.calibrated_softmax(part.double(), text.double(), 100.0, backend="reference")
        assert torch.equal(got.predicted, true.predicted), "other predictions"
        error = float((got.confidence.double() - true.confidence).abs().max())
        most = {"accurate": 5e-5, "fast": 2e-3}[precision]
        assert error <= most, f"error {error:.2g} of a confidence"

    options: Any = {"precision": precision, "labels": labels, "backend": "triton"}
    compiled = cache(lambda: torch.compile(naive, dynamic=False))
    calls: dict[str, Call] = {
        "triton": lambda i: ops.calibrated_softmax(images[i % 3], text, 100.0, **options),
        "torch bf16 mm + softmax + max": lambda i: naive(half[i % 3], half_text),
        "torch bf16 mm, our softmax_statistics": two_steps,
        "torch.compile, bf16": lambda i: compiled()(half[i % 3], half_text),
    }
    return Run(calls, gate)


def loss(n: int, classes: int, dim: int, device: str) -> Run:
    images, (text,) = rows(n, dim, device), rows(classes, dim, device, 1)
    labels = torch.arange(n, device=device) % classes

    def step(head: Callable[..., Tensor], dtype: torch.dtype, i: int) -> Any:
        leaves = [x.to(dtype).requires_grad_() for x in (images[i % 3], text)]
        return torch.autograd.grad(head(*leaves), leaves)

    def ours(image: Tensor, text: Tensor) -> Tensor:
        options: Any = {"precision": "fast", "backend": "triton"}
        return ops.cosine_cross_entropy(image, text, labels, 100.0, **options)

    def naive(image: Tensor, text: Tensor) -> Tensor:
        return F.cross_entropy(image @ text.T * 100.0, labels)

    def liger(image: Tensor, text: Tensor) -> Tensor:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        return LigerFusedLinearCrossEntropyLoss()(text, image * 100.0, labels)

    def cut(image: Tensor, text: Tensor) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy

        return linear_cross_entropy(image * 100.0, text, labels)

    def gate(backend: str) -> None:
        each = []
        for dtype, name in ((torch.float32, backend), (torch.float64, "reference")):
            leaves = [x.to(dtype).requires_grad_() for x in (images[0][:256], text)]
            options: Any = {"precision": "fast", "backend": name}
            value = ops.cosine_cross_entropy(*leaves, labels[:256], 100.0, **options)
            each.append([value.detach(), *torch.autograd.grad(value, leaves)])
        for got, true in zip(*each, strict=True):
            error = float((got.double() - true).abs().max() / true.abs().max())
            assert error <= 1e-2, f"relative error {error:.2g}"

    calls: dict[str, Call] = {
        "triton": partial(step, ours, torch.float32),
        "torch bf16 naive": partial(step, naive, torch.bfloat16),
        "Liger fused linear cross-entropy, bf16": partial(step, liger, torch.bfloat16),
        "cut-cross-entropy, bf16": partial(step, cut, torch.bfloat16),
    }
    return Run(calls, gate)


def sure(n: int, device: str) -> list[tuple[Tensor, Tensor]]:
    """Two sets of confidences of a sure model, and what is correct."""
    generator = torch.Generator(device).manual_seed(1)
    made = []
    for _ in range(2):
        confidence = torch.rand(n, generator=generator, device=device).square_().mul_(-0.97).add_(1)
        right = torch.rand(n, generator=generator, device=device) < confidence - 0.03
        made.append((confidence, right))
    return made


def exact(op: Callable[..., Any], *inputs: Tensor, most: int = 1_000_003) -> Callable[[str], None]:
    """A gate: the first rows of the inputs give what float64 gives."""
    part = tuple(value[:most] for value in inputs)
    return lambda backend: assert_as_good_as_reference(op, part, {}, backend, exact=True)


def ece(n: int, device: str) -> Run:
    samples, op = sure(n, device), ops.bin_statistics

    def bincount(i: int) -> float:
        confidence, correct = samples[i % 2]
        index = (confidence * 15).ceil().long().clamp(1, 15) - 1
        gap = torch.bincount(index, confidence, 15) - torch.bincount(index, correct.float(), 15)
        return float(gap.abs().sum() / n)

    calls: dict[str, Call] = {
        "triton": lambda i: op(*samples[i % 2], backend="triton").ece(),
        "cuda": lambda i: op(*samples[i % 2], backend="cuda").ece(),
        "torch.bincount": bincount,
        "torchmetrics": lambda i: peers.torchmetrics_ece(*samples[i % 2]),
    }
    return Run(calls, exact(op, *samples[0]))


def equal_mass(n: int, device: str) -> Run:
    samples, op = sure(n, device), ops.equal_mass_statistics
    calls: dict[str, Call] = {
        "cuda": lambda i: op(*samples[i % 2], backend="cuda").ece(),
        "torch.sort": lambda i: peers.sorted_equal_mass_ece(*samples[i % 2]),
    }
    return Run(calls, exact(op, *samples[0]))


def classwise(n: int, classes: int, device: str) -> Run:
    logits = 2 * torch.randn(n, classes, device=device)
    labels = torch.arange(n, device=device) % classes
    probs = [logits.softmax(-1), logits.flip(0).softmax(-1)]
    column, op = torch.arange(classes, device=device), ops.classwise_statistics

    def bincount(i: int) -> Any:
        bins = (probs[i % 2] * 15).ceil().long().clamp(1, 15) - 1
        index = (bins + 15 * column).flatten()
        right = (labels[:, None] == column).flatten().float()
        values = probs[i % 2].flatten(), right
        return [torch.bincount(index, value, 15 * classes) for value in values]

    calls: dict[str, Call] = {
        "triton": lambda i: op(probs[i % 2], labels, backend="triton").errors(),
        "torch.bincount": bincount,
    }
    return Run(calls, exact(op, probs[0], labels, most=2000))


def stored(n: int, classes: int, device: str) -> Run:
    logits = 4 * torch.randn(2, n, classes, device=device)
    labels, op = torch.arange(n, device=device) % classes, ops.softmax_statistics

    def plain(i: int) -> Any:
        log_probs = logits[i % 2].log_softmax(-1)
        probs = log_probs.exp()
        squares, likelihood = probs.square().sum(-1), log_probs.gather(1, labels[:, None])
        return probs.max(-1), -(probs * log_probs).sum(-1), squares, likelihood

    def gate(backend: str) -> None:
        assert_as_good_as_reference(op, (logits[0, :2000], labels[:2000]), {}, backend)

    calls: dict[str, Call] = {
        "triton": lambda i: op(logits[i % 2], labels, backend="triton"),
        "torch, all four": plain,
    }
    return Run(calls, gate)


def density(n: int, m: int, device: str) -> Run:
    queries, points = torch.rand(2, n, 2, device=device), torch.rand(m, 2, device=device)
    h = torch.tensor([0.04, 0.05], dtype=torch.float64, device=device)
    factor, op = (0.5**0.5 / h).float(), ops.kernel_density
    peak = float(1 / (2 * torch.pi * h.prod() * m))

    def blocks(i: int) -> Tensor:
        # 2 q.p - |q|^2 - |p|^2 as one product of four columns, the exponentials in its place
        q, p = queries[i % 2] * factor, points * factor
        lengths = [-each.square().sum(-1, keepdim=True) for each in (q, p)]
        left = torch.cat([2 * q, lengths[0], torch.ones_like(lengths[0])], 1)
        right = torch.cat([p, torch.ones_like(lengths[1]), lengths[1]], 1).T.contiguous()
        sums = [(some @ right).exp_().sum(-1) for some in left.split(max(1, (1 << 28) // m))]
        return torch.cat(sums) * peak

    def gate(backend: str) -> None:
        part = (queries[0, :1000], points, h)
        assert_as_good_as_reference(op, part, {}, backend, exact=True)

    calls: dict[str, Call] = {
        "triton": lambda i: op(queries[i % 2], points, h, backend="triton"),
        "torch in blocks": blocks,
    }
    return Run(calls, gate)

"""What is compared on a GPU, and what was expected of it before anything was measured.

A floor is arithmetic for an H200: 790 TFLOP/s of fp16 products and 4.3 TB/s, as both were measured
on one such card before, and 16 exponentials a clock on each of 132 multiprocessors at 1.98 GHz. A
prediction says what our kernel will take. Neither is changed after a measurement.
"""

from __future__ import annotations

from typing import NamedTuple

FP16_FLOPS, BANDWIDTH, EXPONENTIALS = 790e12, 4.3e12, 16 * 132 * 1.98e9


class Peer(NamedTuple):
    """What we compare with: how many times faster we must and want to be; None: shown only."""

    name: str
    reach: float | None = None
    aim: float | None = None


class Comparison(NamedTuple):
    """One workload of one op.

    Args:
        op: a name of `vlcal.ops.OPS`.
        workload: what the table says; a key of `benchmarks.gpu_workloads.RUNS` with `op`.
        floor_ms: no kernel of this kind can be faster.
        floor: the arithmetic.
        ours: predicted milliseconds of our variants, by name.
        peers: the others.
    """

    op: str
    workload: str
    floor_ms: float
    floor: str
    ours: dict[str, float]
    peers: tuple[Peer, ...]


def products(n: int, classes: int, dim: int, times: float = 1) -> float:
    """Milliseconds that `times` fp16 products [n, dim] x [dim, classes] take."""
    return 2 * n * classes * dim * times / FP16_FLOPS * 1e3


def memory(size: float) -> float:
    """Milliseconds that bytes take from memory once."""
    return size / BANDWIDTH * 1e3


def exponentials(count: float) -> float:
    """Milliseconds that so many take."""
    return count / EXPONENTIALS * 1e3


ECE_PEERS = (Peer("torchmetrics", 20, 50), Peer("torch.bincount", 5, 10))
FAST_PEERS = (
    Peer("torch bf16 mm + softmax + max", 2.5, 4),
    Peer("torch.compile, bf16", 2.5, 4),
)
LOSS_PEERS = (
    Peer("torch bf16 naive", 2, 3),
    Peer("Liger fused linear cross-entropy, bf16", 3, 6),
    Peer("cut-cross-entropy, bf16", 3, 6),
)

PLAN = (
    Comparison(
        "knn",
        "1000 in 1M, d=512, K=10",
        products(1000, 1_000_000, 512),
        "one fp16 product",
        {"triton": 2.4, "cuda": 1.9},
        (Peer("torch fp32 mm + topk", 6, 10), Peer("torch fp16 mm + topk, inexact", 2, 3.5)),
    ),
    Comparison(
        "knn",
        "100 in 1M, d=512, K=10",
        memory(1e6 * 512 * 2),
        "fp16 keys read once",
        {"triton": 0.4, "cuda": 0.3},
        (Peer("torch fp32 mm + topk", 4, None), Peer("torch fp16 mm + topk, inexact")),
    ),
    Comparison(
        "calibrated_softmax",
        "50k x 1000, fast",
        products(50_000, 1000, 512),
        "one fp16 product",
        {"triton": 0.15},
        FAST_PEERS,
    ),
    Comparison(
        "calibrated_softmax",
        "10k x 100k, fast",
        products(10_000, 100_000, 512),
        "one fp16 product",
        {"triton": 2.4},
        FAST_PEERS,
    ),
    Comparison(
        "calibrated_softmax",
        "50k x 1000, accurate",
        products(50_000, 1000, 512, 3),
        "three fp16 products",
        {"triton": 0.4},
        (Peer("torch fp32 mm + softmax + max", 3, 5),),
    ),
    Comparison(
        "calibrated_softmax",
        "10k x 100k, accurate",
        products(10_000, 100_000, 512, 3),
        "three fp16 products",
        {"triton": 7.0},
        (Peer("torch fp32 mm + softmax + max", 3, 5),),
    ),
    Comparison(
        "cosine_cross_entropy",
        "32k x 32k, forward and backward, fast",
        products(32_768, 32_768, 512, 3),
        "three fp16 products",
        {"triton": 8.0},
        LOSS_PEERS,
    ),
    Comparison(
        "cosine_cross_entropy",
        "10k x 100k, forward and backward, fast",
        products(10_000, 100_000, 512, 3),
        "three fp16 products",
        {"triton": 8.0},
        LOSS_PEERS,
    ),
    Comparison(
        "bin_statistics",
        "ECE of 1e8 confidences",
        memory(1e8 * 5),
        "5 bytes a sample",
        {"triton": 0.5, "cuda": 0.17},
        ECE_PEERS,
    ),
    Comparison(
        "equal_mass_statistics",
        "1e8 confidences, ties together",
        memory(1e8 * 5 * 2),
        "5 bytes a sample, twice",
        {"triton": 6.0, "cuda": 1.2},
        (Peer("torch.sort"),),
    ),
    Comparison(
        "classwise_statistics",
        "50k x 1000",
        memory(50_000 * 1000 * 4),
        "4 bytes a probability",
        {"triton": 0.35},
        (Peer("torch.bincount"),),
    ),
    Comparison(
        "softmax_statistics",
        "50k x 1000",
        memory(50_000 * 1000 * 4),
        "4 bytes a logit",
        {"triton": 0.08},
        (Peer("torch, all four"),),
    ),
    Comparison(
        "kernel_density",
        "100k under 100k points",
        exponentials(100_000 * 100_000),
        "one exponential a pair",
        # 14 instructions a pair, 128 a clock
        {"triton": 5.5},
        (Peer("torch in blocks", 5, 10), Peer("torch.compile")),
    ),
)

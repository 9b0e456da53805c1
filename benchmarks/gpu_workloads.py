"""The workloads of `gpu_plan.PLAN`: full on a GPU, small where the harness is rehearsed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import gpu_features, gpu_samples
from benchmarks.gpu_clock import Run


class Workload(NamedTuple):
    """`make(*full, device)`, or of small sizes; inputs are made on the device from seeds."""

    make: Callable[..., Run]
    full: tuple[Any, ...]
    small: tuple[Any, ...]

    def on(self, device: str, small: bool) -> Run:
        return self.make(*(self.small if small else self.full), device)


knn, softmax, loss = gpu_features.knn, gpu_features.softmax, gpu_features.loss

RUNS: dict[tuple[str, str], Workload] = {
    ("knn", "1000 in 1M, d=512, K=10"): Workload(knn, (1000, 1_000_000, 512, 10), (5, 300, 64, 3)),
    ("knn", "100 in 1M, d=512, K=10"): Workload(knn, (100, 1_000_000, 512, 10), (2, 300, 64, 3)),
    ("calibrated_softmax", "50k x 1000, fast"): Workload(
        softmax, (50_000, 1000, 512, "fast"), (6, 40, 16, "fast")
    ),
    ("calibrated_softmax", "10k x 100k, fast"): Workload(
        softmax, (10_000, 100_000, 512, "fast"), (3, 90, 16, "fast")
    ),
    ("calibrated_softmax", "50k x 1000, accurate"): Workload(
        softmax, (50_000, 1000, 512, "accurate"), (6, 40, 16, "accurate")
    ),
    ("calibrated_softmax", "10k x 100k, accurate"): Workload(
        softmax, (10_000, 100_000, 512, "accurate"), (3, 90, 16, "accurate")
    ),
    ("cosine_cross_entropy", "32k x 32k, forward and backward, fast"): Workload(
        loss, (32_768, 32_768, 512), (6, 30, 16)
    ),
    ("cosine_cross_entropy", "10k x 100k, forward and backward, fast"): Workload(
        loss, (10_000, 100_000, 512), (3, 60, 16)
    ),
    ("bin_statistics", "ECE of 1e8 confidences"): Workload(
        gpu_samples.ece, (100_000_000,), (3000,)
    ),
    ("equal_mass_statistics", "1e8 confidences, ties together"): Workload(
        gpu_samples.equal_mass, (100_000_000,), (3000,)
    ),
    ("classwise_statistics", "50k x 1000"): Workload(
        gpu_samples.classwise, (50_000, 1000), (60, 7)
    ),
    ("softmax_statistics", "50k x 1000"): Workload(
        gpu_samples.softmax_stored, (50_000, 1000), (60, 7)
    ),
    ("kernel_density", "100k under 100k points"): Workload(
        gpu_samples.density, (100_000, 100_000), (70, 300)
    ),
}

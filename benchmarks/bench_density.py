"""The density ratio over confidence and proximity beside the loop over rows of the reference."""

import numpy as np
import pytest
import torch

from benchmarks import peers, workloads
from benchmarks.measure import Provider
from vlcal.calibrators import DensityRatio

FEW = 250  # rows of the loop that are timed; the others are extrapolated


def rows(n, seed=0):
    """Confidence near 1 and proximity of CLIP features, and correctness that follows both."""
    confidence, _ = workloads.confidences(n, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    near = (0.55 + 0.08 * torch.randn(n, generator=generator)).clamp(0, 1)
    correct = torch.rand(n, generator=generator) < confidence * (0.4 + near)
    return torch.stack([confidence, near], -1), correct


def ratio(p1, p0, correct):
    wrong = int((~correct).sum())
    return p1 / np.maximum(p1 + wrong / (len(correct) - wrong) * p0, 1e-10)


def statsmodels_loop(points, correct, queries):
    """What the published code calls: statsmodels, whose `pdf` is a Python loop over the rows."""
    from statsmodels.nonparametric.kernel_density import KDEMultivariate

    both = (
        KDEMultivariate(points[each].double().numpy(), "cc", bw="normal_reference")
        for each in (correct, ~correct)
    )
    return ratio(*(kde.pdf(queries.double().numpy()) for kde in both), correct)


def torch_blocks(points, correct, queries):
    """The best plain torch: a block of exponents is one product of four columns, made in place.

    Exponents stop at 2^-115: from denormal numbers on, torch's exponentials are five times slower.
    """

    def density(seen):
        h = 1.06 * seen.double().std(0, correction=0) * len(seen) ** (-1 / 6)
        factor = (np.log2(np.e) ** 0.5 / h).float()
        center = seen.mean(0)
        q, p = (queries - center) * factor, (seen - center) * factor
        lengths = [-0.5 * each.square().sum(-1, keepdim=True) for each in (q, p)]
        # q.p - |q|^2 / 2 - |p|^2 / 2
        rows = torch.cat([q, lengths[0], torch.ones(len(q), 1)], 1)
        columns = torch.cat([p, torch.ones(len(p), 1), lengths[1]], 1).T.contiguous()
        size = max(1, (1 << 18) // len(seen))
        room, sums = torch.empty(size, len(seen)), torch.empty(len(queries))
        for start in range(0, len(queries), size):
            block = rows[start : start + size]
            powers = torch.mm(block, columns, out=room[: len(block)]).clamp_(min=-115).exp2_()
            sums[start : start + size] = powers.sum(-1)
        return (sums.double() / (len(seen) * 2 * torch.pi * h.prod())).numpy()

    return ratio(density(points[correct]), density(points[~correct]), correct)


@pytest.mark.parametrize("workload", workloads.DENSITY, ids=str)
def bench_density_ratio(bench, workload):
    points, correct = rows(workload.classes)
    queries, _ = rows(workload.n, seed=1)

    def ours():
        return DensityRatio().fit_points(points, correct).at(queries)

    missing = peers.missing("statsmodels")
    bench.check("kernel_density")
    for wanted in (torch_blocks, *([] if missing else [statsmodels_loop])):
        truth = wanted(points, correct, queries[:FEW])
        bench.check_value("density_ratio", ours()[:FEW], truth, 1e-4)
    bench.compare(
        "density_ratio",
        workload,
        [
            Provider("vlcal", ours),
            Provider(
                f"statsmodels (a loop over rows), {FEW} rows extrapolated",
                lambda: statsmodels_loop(points, correct, queries[:FEW]),
                50,
                missing=missing,
                share=FEW / workload.n,
            ),
            Provider("torch in blocks", lambda: torch_blocks(points, correct, queries)),
        ],
    )

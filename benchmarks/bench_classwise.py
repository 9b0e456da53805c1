"""Class-wise ECE, plain and thresholded, against the published loop over classes and bins."""

from itertools import pairwise

import pytest
import torch

from benchmarks import peers, workloads
from benchmarks.measure import Provider
from vlcal import metrics
from vlcal.types import Predictions

RULE = metrics.convention("clipcalib")
FEW = 20  # classes of the loop that are run and extrapolated


def looped(probs, labels, n_classes, threshold=None, n_bins=15):
    """Class by class and bin by bin with masks over all samples, as CLIPCalib's loss classes do."""
    edges = torch.linspace(0, 1, n_bins + 1)
    errors = []
    for c in range(n_classes):
        column, hit = probs[:, c], labels.eq(c)
        if threshold is not None:
            hit, column = hit[column > threshold], column[column > threshold]
        error = torch.zeros(1)
        for low, high in pairwise(edges):
            inside = column.gt(low.item()) * column.le(high.item())
            share = inside.float().mean()
            if share.item() > 0:
                gap = column[inside].mean() - hit[inside].float().mean()
                error += gap.abs() * share
        errors.append(error)
    return torch.cat(errors)


@pytest.mark.parametrize("workload", workloads.LOGITS, ids=str)
def bench_classwise_ece(bench, workload):
    logits, labels = workloads.logits(workload.n, workload.classes)
    probs = logits.softmax(-1)

    def tables():
        return metrics.classwise_of_probs(probs, labels, RULE)

    def both():
        seen = tables()
        return seen.ece(), seen.ece_thresholded()

    def both_looped():
        return looped(probs, labels, FEW), looped(probs, labels, FEW, 1e-3)

    bench.check("classwise_statistics", probs[:500], labels[:500])
    bench.check_value("classwise_ece", tables().errors()[:FEW], both_looped()[0], 1e-5)
    bench.check_value("classwise_ece", tables().errors_thresholded()[:FEW], both_looped()[1], 1e-5)
    share = FEW / workload.classes
    name = f"published loop, {FEW} classes extrapolated"
    bench.compare(
        "classwise_ece",
        workload,
        [
            Provider("vlcal, plain and thresholded", both),
            Provider(f"{name}, plain", lambda: looped(probs, labels, FEW), 20, share=share),
            Provider(f"{name}, plain and thresholded", both_looped, share=share),
            Provider("numpy loop over classes", lambda: peers.classwise_ece(probs, labels)),
        ],
    )
    predictions = Predictions(logits=logits, labels=labels)
    bench.compare(
        "classwise_ece",
        workload.named(f"{workload.name}, softmax included"),
        [
            Provider("vlcal", lambda: metrics.classwise(predictions, RULE).ece()),
            Provider("softmax alone", lambda: logits.softmax(-1)),
        ],
    )

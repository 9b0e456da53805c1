"""Contrast-aware and sample-adaptive factors beside one plain fused pass over the same logits."""

import pytest
import torch
from torch.nn.functional import normalize

from benchmarks import workloads
from benchmarks.measure import Provider
from vlcal import ops
from vlcal.calibrators import ContrastAware, SampleAdaptive
from vlcal.types import Predictions

CALIBRATORS = {"contrast_aware": ContrastAware, "sample_adaptive": SampleAdaptive}
# factors in 1.5 and 2.5 plain passes: models that differ in their texts, or in both features
TARGETS = {"same images": 0.667, "two models": 0.4}
SCALE = 100.0


def models(workload, pairs):
    """A tuned model and the one before, on the same images and classes; features only."""
    images, classes = workload.features()
    before, texts = (
        normalize(x + 0.1 * workloads.clip_like(len(x), workload.dim, seed), dim=-1)
        for x, seed in ((images, 7), (classes, 8))
    )
    if pairs == "same images":
        before = images
    zero_shot = Predictions(image_features=before, text_features=texts, logit_scale=SCALE)
    return Predictions(
        image_features=images, text_features=classes, logit_scale=SCALE, zero_shot=zero_shot
    )


def plain_factors(name, test, rows):
    """The factors of the first rows from whole matrices of logits, in float64."""
    tuned, before = (
        model.image_features[rows].double() @ model.text_features.double().T
        for model in (test, test.zero_shot)
    )
    if name == "sample_adaptive":
        return (before.amax(-1) - before.amin(-1)) / (tuned.amax(-1) - tuned.amin(-1))
    return ContrastAware().factor((tuned - before).abs().mean(-1))


def chunked(name, test):
    """The same in float32, as a script has it: blocks of 64 MiB of logits of both models."""
    size = max(1, (16 << 20) // test.n_classes)
    blocks = []
    for start in range(0, len(test), size):
        rows = slice(start, start + size)
        tuned, before = (
            model.image_features[rows] @ model.text_features.T for model in (test, test.zero_shot)
        )
        if name == "sample_adaptive":
            ranges = [x.amax(-1) - x.amin(-1) for x in (before, tuned)]
            blocks.append(ranges[0] / ranges[1])
        else:
            blocks.append(ContrastAware().factor((tuned - before).abs().mean(-1)))
    return torch.cat(blocks)


@pytest.mark.parametrize("pairs", TARGETS)
@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("workload", workloads.ROW_SCALING, ids=str)
def bench_row_scaling(bench, workload, name, pairs):
    test = models(workload, pairs)
    made = CALIBRATORS[name]()

    def factors():
        return made.scale(test)[0]

    def pass_over(predictions):
        return ops.calibrated_softmax(
            predictions.image_features,
            predictions.text_features,
            SCALE,
            row_scale=predictions.row_scale,
        )

    rows = slice(0, 20)
    bench.check_value(name, factors()[rows], plain_factors(name, test, rows), 1e-5)
    named = workload.named(f"{workload.name}, {pairs}")
    providers = [
        Provider("vlcal", factors),
        Provider("one plain fused pass", lambda: pass_over(test), TARGETS[pairs]),
        Provider("torch, in chunks", lambda: chunked(name, test)),
        Provider("factors and a calibrated pass", lambda: pass_over(made.transform(test))),
    ]
    # a call of the large workload takes up to a minute
    bench.compare(name, named, providers[: 2 if workload.full else 4], rounds=3)

"""Whole steps a user waits for: evaluation of stored logits, fitting distance-aware calibration."""

import numpy as np
import pytest
import torch

import vlcal
from benchmarks import workloads
from benchmarks.measure import Provider
from vlcal.calibrators import DistanceAware
from vlcal.types import Predictions


def plain_metrics(logits, labels):
    """Accuracy, ECE, MCE, NLL and Brier score, as a notebook has them."""
    shifted = logits - logits.max(1, keepdims=True)
    probs = np.exp(shifted)
    probs /= probs.sum(1, keepdims=True)
    confidence, predicted = probs.max(1), probs.argmax(1)
    correct = predicted == labels
    index = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    count = np.bincount(index, minlength=15)
    gaps = np.abs(np.bincount(index, confidence, 15) - np.bincount(index, correct, 15))
    one_hot = np.zeros_like(probs)
    one_hot[np.arange(len(labels)), labels] = 1
    return {
        "accuracy": correct.mean(),
        "ece": gaps.sum() / len(labels),
        "mce": (gaps / np.maximum(count, 1)).max(),
        "nll": -np.log(probs[np.arange(len(labels)), labels]).mean(),
        "brier": ((probs - one_hot) ** 2).sum(1).mean(),
    }


@pytest.mark.parametrize("workload", workloads.LOGITS, ids=str)
def bench_evaluate(bench, workload):
    logits, labels = workloads.logits(workload.n, workload.classes)
    arrays = logits.numpy(), labels.numpy()

    def ours():
        return vlcal.evaluate(logits=logits, labels=labels).metrics

    wanted = plain_metrics(arrays[0][:2000].astype(np.float64), arrays[1][:2000])
    got = vlcal.evaluate(logits=logits[:2000], labels=labels[:2000]).metrics
    names = sorted(wanted)
    bench.check_value(
        "evaluate", [got[name] for name in names], [wanted[name] for name in names], 1e-5
    )
    bench.compare(
        "evaluate",
        workload,
        [Provider("vlcal", ours), Provider("numpy", lambda: plain_metrics(*arrays))],
    )


def paper_factors(tuned, tuned_base, frozen, frozen_base):
    """The published loop: class by class, NumPy distances to all base classes, five averaged.

    Sorted and, for indices nobody reads, sorted again; float16 there, as the encoder gives them.
    """
    factors = []
    for c in range(len(tuned)):
        means = []
        for row, base in ((tuned[c], tuned_base), (frozen[c], frozen_base)):
            distance = np.linalg.norm(base - row, axis=1)
            np.argsort(distance)
            means.append(np.sort(distance)[:5].mean())
        factors.append(np.exp(means[1] - means[0]))
    return torch.tensor(np.array(factors, dtype=np.float32))


@pytest.mark.parametrize("workload", workloads.DISTANCE_AWARE, ids=str)
def bench_distance_aware(bench, workload):
    base, new = (predictions(workload.classes, name, seed) for name, seed in (("b", 0), ("n", 5)))
    few = 5
    share = few / workload.classes

    def ours():
        return DistanceAware().fit(base).transform(new).predicted_scale

    def loop(dtype):
        models = (new, base, new.zero_shot, base.zero_shot)
        rows = (len(base.text_features), few)
        features = [model.text_features.numpy().astype(dtype) for model in models]
        return lambda: paper_factors(*(f[: rows[i % 2 == 0]] for i, f in enumerate(features)))

    float16, float32 = loop(np.float16), loop(np.float32)
    bench.check_value("distance_aware", ours()[:few], float32(), 1e-5)
    bench.compare(
        "distance_aware",
        workload,
        [
            Provider("vlcal", ours),
            Provider("the papers' loop, 5 classes extrapolated", float16, 100, share=share),
            Provider("the same in float32", float32, 100 if workload.full else None, share=share),
        ],
    )


def predictions(n_classes, name, seed):
    """One image and many classes: distance-aware calibration looks at the texts alone."""
    frozen = workloads.clip_like(n_classes, 512, seed)
    moved = frozen + 0.3 * workloads.clip_like(n_classes, 512, seed + 1)
    common = {
        "image_features": workloads.clip_like(1, 512, 99),
        "labels": torch.zeros(1, dtype=torch.int64),
        "logit_scale": 100.0,
        "class_names": tuple(f"{name}{i}" for i in range(n_classes)),
    }
    zero_shot = Predictions(text_features=frozen, **common)
    unit = torch.nn.functional.normalize(moved, dim=-1)
    return Predictions(text_features=unit, zero_shot=zero_shot, **common)

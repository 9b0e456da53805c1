"""Class-wise ECE: by hand, against the published loops, any split, any form of the input."""

from dataclasses import replace

import pytest
import torch

from vlcal.metrics import (
    classwise,
    classwise_ece,
    classwise_ece_thresholded,
    classwise_of_probs,
    convention,
)
from vlcal.types import NoSamplesError, Predictions

STANDARD, CLIPCALIB = convention("standard"), convention("clipcalib")


def published(probs, labels, threshold=None, n_bins=15):
    """The loop over classes and bins of float32 probabilities, in double sums."""
    edges = torch.linspace(0, 1, n_bins + 1)
    errors = []
    for c in range(int(labels.max()) + 1):
        column, hit = probs[:, c], labels == c
        if threshold is not None:
            column, hit = column[probs[:, c] > threshold], hit[probs[:, c] > threshold]
        error = 0.0
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            inside = column.gt(low) & column.le(high)
            if inside.any():
                gap = column[inside].double().mean() - hit[inside].double().mean()
                error += float(gap.abs()) * float(inside.double().mean())
        errors.append(error)
    return sum(errors) / len(errors)


def draw(n=400, n_classes=12, sharp=4.0):
    logits = torch.randn(n, n_classes) * sharp
    labels = torch.distributions.Categorical(logits=logits / 2).sample()
    return logits, labels.clamp(max=n_classes - 3)


def test_five_rows_by_hand():
    # class 0: 0.9 and 0.8 in their own bins, three times 0.1; class 1 is its complement
    first = torch.tensor([0.9, 0.8, 0.1, 0.1, 0.1], dtype=torch.float64)
    probs, labels = torch.stack([first, 1 - first], dim=1), torch.tensor([0, 1, 1, 1, 0])
    expected = (abs(0.9 - 1) + abs(0.8 - 0) + abs(0.3 - 1)) / 5
    assert classwise_ece(probs, labels) == pytest.approx(expected, abs=1e-8)
    # row 0 puts 0.0005 on class 1, so class 1 counts four samples
    probs[0] = torch.tensor([0.9995, 0.0005])
    kept = (abs(0.2 - 1) + abs(2.7 - 2)) / 4
    both = [(abs(0.9995 - 1) + 0.8 + abs(0.3 - 1)) / 5, kept]
    assert classwise_ece_thresholded(probs, labels) == pytest.approx(sum(both) / 2, abs=1e-8)


@pytest.mark.parametrize("case", ["spread", "zeros", "on the edges", "at the threshold"])
def test_clipcalib_is_the_published_loop(case):
    logits, labels = draw()
    probs = logits.softmax(-1)
    if case == "zeros":
        probs = (logits * 30).softmax(-1)
        assert (probs == 0).any() and (probs == 1).any()
    if case == "on the edges":  # those of torch, the eleventh of which is not NumPy's
        probs[::3, 0] = torch.linspace(0, 1, 16)[torch.randint(16, (134,))]
    if case == "at the threshold":
        probs[::3] = torch.tensor([1e-3] * 11 + [0.989])
    seen = classwise_of_probs(probs, labels, CLIPCALIB)
    assert seen.ece() == pytest.approx(published(probs, labels), abs=1e-8)
    assert seen.ece_thresholded() == pytest.approx(published(probs, labels, 1e-3), abs=1e-8)


def test_the_recorded_values_of_the_published_classes():
    # made by running them; they sum in float32
    logits = torch.arange(350.0).mul(1.7).sin().mul(7).view(50, 7)
    labels = torch.arange(50) % 6
    seen = classwise(Predictions(logits=logits, labels=labels), CLIPCALIB)
    assert seen.ece() == pytest.approx(RECORDED[0], abs=1e-6)
    assert seen.ece_thresholded() == pytest.approx(RECORDED[1], abs=1e-6)


RECORDED = (0.24522072, 0.32187483)


def test_standard_counts_all_classes_and_zeros():
    logits, labels = draw(sharp=60.0)
    probs = logits.softmax(-1)
    errors = [
        sum(
            abs(float((probs[inside, c].double() - (labels[inside] == c).double()).sum()))
            for inside in [
                (probs[:, c] > low / 15) & (probs[:, c] <= (low + 1) / 15)
                if low
                else probs[:, c] <= 1 / 15
                for low in range(15)
            ]
        )
        / len(labels)
        for c in range(12)
    ]
    assert classwise_ece(probs, labels) == pytest.approx(sum(errors) / 12, abs=1e-7)


@pytest.mark.parametrize("rule", [STANDARD, CLIPCALIB], ids=["standard", "clipcalib"])
def test_order_and_split_change_nothing(rule):
    logits, labels = draw()
    probs, order = logits.softmax(-1), torch.randperm(400)
    whole = classwise_of_probs(probs, labels, rule)
    parts = classwise_of_probs(probs[order][:150], labels[order][:150], rule)
    parts = parts + classwise_of_probs(probs[order][150:], labels[order][150:], rule)
    assert torch.equal(parts.errors(), whole.errors())
    assert parts.ece() == whole.ece()
    assert parts.ece_thresholded() == whole.ece_thresholded()


def test_predictions_without_logits_are_those_with(generator):
    images = torch.nn.functional.normalize(torch.randn(90, 8, generator=generator), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=-1)
    labels = torch.randint(5, (90,), generator=generator)
    lazy = Predictions(image_features=images, text_features=texts, logit_scale=10.0, labels=labels)
    lazy = lazy.scaled(row=0.7)
    stored = Predictions(logits=images @ texts.T * 10 * 0.7, labels=labels)
    assert classwise(lazy, STANDARD).ece() == pytest.approx(
        classwise(stored, STANDARD).ece(), abs=1e-6
    )


def test_perfect_calibration_gives_zero():
    probs = torch.tensor([[0.25, 0.75]]).repeat(4, 1)
    assert classwise_ece(probs, torch.tensor([0, 1, 1, 1])) == 0


def test_refusals():
    probs, labels = draw()[0].softmax(-1), torch.zeros(400, dtype=torch.int64)
    with pytest.raises(ValueError, match="classwise_ece: every row of probs must sum to 1"):
        classwise_ece(probs * 0.9, labels)
    with pytest.raises(ValueError, match=r"classwise_ece: labels must be in 0\.\.11, got 12"):
        classwise_ece(probs, labels + 12)
    with pytest.raises(NoSamplesError, match="needs at least one sample"):
        classwise_ece(probs[:0], labels[:0])
    with pytest.raises(ValueError, match="needs predictions with labels"):
        classwise(Predictions(logits=probs), STANDARD)
    few = probs[:9], labels[:9]
    with pytest.raises(ValueError, match="the same convention can be added, got standard and clip"):
        classwise_of_probs(*few, STANDARD) + classwise_of_probs(*few, CLIPCALIB)
    with pytest.raises(ValueError, match="must share the first bin, got 1000 bins"):
        classwise_of_probs(probs, labels, replace(STANDARD, n_bins=1000))

"""The density ratio, by toys, by its formula in NumPy and by statsmodels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from vlcal.calibrators import (
    Chain,
    DensityRatio,
    FittedOnTest,
    NotFitted,
    load_calibrator,
    save_calibrator,
)
from vlcal.ops import knn, proximity
from vlcal.types import Predictions


def points_and_truth(n=400, seed=0):
    """Confidence and proximity, and correctness that follows both."""
    generator = torch.Generator().manual_seed(seed)
    confidence = 1 - torch.rand(n, generator=generator).square() * 0.9
    near = 0.3 + 0.5 * torch.rand(n, generator=generator)
    correct = torch.rand(n, generator=generator) < 1.2 * confidence * near + 0.2
    return torch.stack([confidence, near], -1), correct


def world(seed, n=300, classes=6, dim=10):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(99)
    text = normalize(torch.randn(classes, dim, generator=shared), dim=-1)
    labels = torch.randint(classes, (n,), generator=generator)
    image = text[labels] + 0.4 * torch.randn(n, dim, generator=generator)
    return Predictions(
        image_features=normalize(image, dim=-1),
        text_features=text,
        logit_scale=8.0,
        labels=labels,
    )


def logits_of(predictions):
    return torch.cat([block for _, block in predictions.blocks()])


def by_formula(points, correct, queries, epsilon=1e-10):
    """The five lines of the method, in float64."""

    def density(x, at):
        h = 1.06 * x.std(0) * len(x) ** (-1 / 6)
        u = (at[:, None] - x) / h
        return np.exp(-(u**2).sum(-1) / 2).mean(-1) / (2 * np.pi * h.prod())

    right, wrong = points[correct], points[~correct]
    p1, p0 = density(right, queries), density(wrong, queries)
    return p1 / np.maximum(p1 + len(wrong) / len(right) * p0, epsilon)


def test_toy_with_two_sets_of_one_shape():
    # the densities of two squares of corners, seen from the middle of one: h = 1.06 / 4^(1/6)
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    points, correct = torch.cat([corners, corners + 3]), torch.arange(8) < 4
    h = 1.06 * 4 ** (-1 / 6)
    here = math.exp(-1 / h**2)  # four corners one away in both dimensions
    along = (math.exp(-2 / h**2) + math.exp(-8 / h**2)) / 2  # 2 and 4 away in each
    made = DensityRatio().fit_points(points, correct)
    assert float(made.at(torch.zeros(1, 2))) == pytest.approx(here / (here + along**2), rel=1e-5)
    assert float(made.at(torch.full((1, 2), 1.5))) == pytest.approx(0.5, rel=1e-6)


def test_formula_in_float64():
    points, correct = points_and_truth()
    queries, _ = points_and_truth(200, seed=1)
    got = DensityRatio().fit_points(points, correct).at(queries)
    wanted = by_formula(points.double().numpy(), correct.numpy(), queries.double().numpy())
    assert float(got.std()) > 0.1
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:After 0.17:FutureWarning")  # of a generator that pdf never uses
def test_agrees_with_statsmodels():
    kde = pytest.importorskip(
        "statsmodels.nonparametric.kernel_density", reason="statsmodels is a test dependency"
    ).KDEMultivariate
    points, correct = points_and_truth()
    queries, _ = points_and_truth(200, seed=1)
    right, wrong = points[correct].double().numpy(), points[~correct].double().numpy()
    p1, p0 = (
        kde(rows, "cc", bw="normal_reference").pdf(queries.double().numpy())
        for rows in (right, wrong)
    )
    wanted = p1 / np.maximum(p1 + len(wrong) / len(right) * p0, 1e-10)
    got = DensityRatio().fit_points(points, correct).at(queries)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-6)


def test_the_predicted_class_gets_the_ratio_and_the_others_share_the_rest():
    val, test = world(0), world(1, n=70)
    made = DensityRatio().fit(val)
    probs, before = made.predict_proba(test), logits_of(test).softmax(-1)
    confidence, predicted = before.max(-1)
    near = proximity(test.image_features, val.image_features, 5)
    wanted = made.at(torch.stack([confidence, near], -1))
    new = probs.gather(1, predicted[:, None])[:, 0]
    torch.testing.assert_close(new.double(), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(probs.sum(-1), torch.ones(70))
    share = (1 - wanted) / (1 - confidence.double())
    others = before.double() * share[:, None]
    others.scatter_(1, predicted[:, None], wanted[:, None])
    torch.testing.assert_close(probs.double(), others, rtol=1e-4, atol=1e-6)


def test_learns_from_every_row_and_its_neighbors_among_the_others():
    val = world(0)
    made = DensityRatio().fit(val)
    confidence, predicted = logits_of(val).softmax(-1).max(-1)
    near = proximity(val.image_features, val.image_features, 5, exclude_self=True)
    points, correct = torch.stack([confidence, near], -1), predicted == val.labels
    assert 3 <= int(correct.sum()) <= len(val) - 3
    by_hand = DensityRatio().fit_points(points, correct)
    torch.testing.assert_close(made.correct_, by_hand.correct_, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.wrong_, by_hand.wrong_, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.bandwidths_, by_hand.bandwidths_, rtol=1e-4, atol=0)


def test_images_of_fit_are_not_their_own_neighbors_unless_asked():
    val = replace(world(0), labels=None)
    made, published = (DensityRatio(exclude_self=alone).fit(world(0)) for alone in (True, False))
    confidence, predicted = logits_of(val).softmax(-1).max(-1)
    for each, alone in ((made, True), (published, False)):
        near = proximity(val.image_features, val.image_features, 5, exclude_self=alone)
        wanted = made.at(torch.stack([confidence, near], -1))
        got = each.predict_proba(val).gather(1, predicted[:, None])[:, 0]
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-5)


def test_proximity_of_the_paper():
    val, test = world(0), world(1, n=40)
    made = DensityRatio(k=10, proximity="mean of exp").fit(val)
    distance = knn(test.image_features, val.image_features, 10).distance
    confidence, predicted = logits_of(test).softmax(-1).max(-1)
    wanted = made.at(torch.stack([confidence, (-(distance**2)).exp().mean(-1)], -1))
    got = made.predict_proba(test).gather(1, predicted[:, None])[:, 0]
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-6)


def test_bandwidths_are_multiplied():
    points, correct = points_and_truth()
    one = DensityRatio().fit_points(points, correct)
    two = DensityRatio(bandwidth=2.5).fit_points(points, correct)
    torch.testing.assert_close(two.bandwidths_, 2.5 * one.bandwidths_)
    assert not torch.allclose(one.at(points), two.at(points), atol=1e-3)


def test_a_confidence_of_one_leaves_the_others_an_even_share():
    val, test = world(0), world(1, n=3)
    logits = torch.zeros(3, 6)
    logits[0, 2] = 200.0  # softmax gives the others 0
    logits[1, 2] = 95.0  # and here denormal numbers
    probs = DensityRatio().fit(val).predict_proba(test.with_logits(logits))
    assert bool(torch.isfinite(probs).all())
    torch.testing.assert_close(probs.sum(-1), torch.ones(3))
    for row in (0, 1):
        rest = (1 - probs[row, 2]) / 5
        others = probs[row, [0, 1, 3, 4, 5]]
        torch.testing.assert_close(others, rest.expand(5), rtol=1e-4, atol=1e-7)
    assert 0 < float(probs[0, 2]) < 1


def test_one_class_stays_certain():
    val = world(0)
    one = Predictions(logits=torch.ones(4, 1), image_features=val.image_features[:4])
    assert DensityRatio().fit(val).predict_proba(one).tolist() == [[1.0]] * 4


def test_far_from_every_row_the_confidence_is_zero():
    points, correct = points_and_truth()
    made = DensityRatio().fit_points(points, correct)
    assert float(made.at(torch.tensor([[50.0, -40.0]]))) == 0


def test_predictions_flip_unless_they_must_not():
    val, test = world(0), world(1)
    before = logits_of(test).argmax(-1)
    flipping, keeping = DensityRatio(), DensityRatio(keep_argmax=True)
    assert (flipping.keeps_argmax, keeping.keeps_argmax) == (False, True)
    free, kept = (each.fit(val).predict_proba(test) for each in (flipping, keeping))
    flips = free.argmax(-1) != before
    assert 0 < int(flips.sum()) < len(test)
    assert torch.equal(kept.argmax(-1), before)
    assert torch.equal(logits_of(keeping.transform(test)).argmax(-1), before)
    assert torch.equal(free[~flips], kept[~flips])
    top, second = kept[flips].topk(2).values.T
    assert bool(((top > second) & (top < second * (1 + 1e-5))).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_ties_keep_their_argmax_when_they_must(dtype):
    val, test = world(0), world(1)
    logits = logits_of(test).to(dtype)
    logits[::3, 4] = logits[::3].amax(-1)
    logits[1::3] = logits[1::3].round()
    logits[2::3] *= 50
    made = DensityRatio(keep_argmax=True).fit(val)
    after = made.transform(test.with_logits(logits)).logits
    assert torch.equal(after.argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize("few", [0, 2])
@pytest.mark.parametrize("which", ["correct", "wrong"])
def test_refuses_too_few_rows_of_either_kind(few, which):
    points, _ = points_and_truth(50)
    chosen = torch.arange(50) < few
    counts = (few, 50 - few) if which == "correct" else (50 - few, few)
    with pytest.raises(
        ValueError, match=rf"at least 3 correct and 3 wrong .*{counts[0]} and {counts[1]}; "
    ):
        DensityRatio().fit_points(points, chosen if which == "correct" else ~chosen)


def test_refuses_rows_without_spread():
    points, correct = points_and_truth(50)
    points[~correct, 1] = 0.5
    with pytest.raises(ValueError, match="wrong validation rows have the same proximity"):
        DensityRatio().fit_points(points, correct)


def test_refuses_what_cannot_be_fitted():
    val = world(0)
    with pytest.raises(ValueError, match=r"k must be in 1..299 .*got 300"):
        DensityRatio(k=300).fit(val)
    with pytest.raises(ValueError, match="needs predictions with image_features"):
        DensityRatio().fit(Predictions(logits=logits_of(val), labels=val.labels))
    made = DensityRatio().fit(val)
    with pytest.raises(ValueError, match="needs predictions with image_features"):
        made.transform(Predictions(logits=logits_of(val)))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("k", 0, "k must be an integer >= 1, got 0"),
        ("bandwidth", 0.0, "bandwidth must be positive and finite, got 0.0"),
        ("epsilon", math.nan, "epsilon must be positive and finite, got nan"),
        ("proximity", "cosine", "proximity must be one of exp of mean, mean of exp, got 'cosine'"),
    ],
)
def test_refuses_options_out_of_range(option, value, said):
    with pytest.raises(ValueError, match=f"den: {said}"):
        DensityRatio(**{option: value})


def test_points_alone_cannot_transform():
    made = DensityRatio().fit_points(*points_and_truth())
    with pytest.raises(NotFitted, match="fit comes before transform"):
        made.transform(world(1))
    with pytest.raises(NotFitted, match="fit comes before transform"):
        DensityRatio().at(torch.zeros(1, 2))


def test_fitting_on_the_test_data_warns_but_not_inside_a_chain(recwarn):
    val = world(0)
    Chain([DensityRatio(), DensityRatio()]).fit(val)
    assert not recwarn.list
    with pytest.warns(FittedOnTest, match="fitted on the very predictions"):
        DensityRatio().fit(val).transform(val)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("correct_", None, "den: points and bandwidths must be finite pairs"),
        ("correct_", "text", "den: points and bandwidths must be finite pairs"),
        ("wrong_", torch.full((9, 2), math.nan), "den: points and bandwidths must be finite pairs"),
        ("wrong_", torch.zeros(9, 3), "den: points and bandwidths must be finite pairs"),
        ("wrong_", torch.zeros(9, 2).long(), "den: points and bandwidths must be finite pairs"),
        ("bandwidths_", torch.zeros(2, 2), r"den: bandwidths must be positive, \[2, 2\]"),
        ("bandwidths_", torch.ones(3, 2), r"den: bandwidths must be positive, \[2, 2\]"),
        ("image_features_", torch.zeros(7, 10), r"den: image features must be \[300, D\]"),
        ("k", "many", "den: k must be an integer >= 1, got 'many'"),
        ("bandwidth", "wide", "cannot be made with these options"),
    ],
)
def test_files_whose_values_do_not_fit_together_are_refused(name, value, said, tmp_path):
    made = DensityRatio().fit(world(0))
    setattr(made, name, value)
    save_calibrator(made, tmp_path / "c")
    with pytest.raises(ValueError, match=said):
        load_calibrator(tmp_path / "c")


def test_what_points_alone_were_fitted_comes_back(tmp_path):
    points, correct = points_and_truth()
    made = DensityRatio(bandwidth=1.5, keep_argmax=True).fit_points(points, correct)
    save_calibrator(made, tmp_path / "c")
    again = load_calibrator(tmp_path / "c")
    assert again.keeps_argmax
    assert torch.equal(again.at(points), made.at(points))

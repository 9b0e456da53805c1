"""CAC against its formula class by class, its golden numbers, and each of its options."""

import math

import pytest
import torch

from vlcal.calibrators import ContrastAware
from vlcal.types import Predictions


def predictions(
    seed=0, n=40, c=30, moved=0.02, scale=100.0, stored=True, other_scale=None, same_images=False
):
    """A model with moved text features, and image features if not the same, and the one before."""
    generator = torch.Generator().manual_seed(seed)

    def unit(rows, near=None):
        noise = torch.randn(rows, 16, generator=generator)
        return torch.nn.functional.normalize(
            noise if near is None else near + moved * noise, dim=-1
        )

    image, text = unit(n), unit(c)
    twin = {"image_features": image, "text_features": text, "logit_scale": other_scale or scale}
    model = {
        "image_features": unit(n, image),
        "text_features": unit(c, text),
        "logit_scale": scale,
    }
    if stored:
        for each in (twin, model):
            each["logits"] = each["image_features"] @ each["text_features"].T * each["logit_scale"]
    return Predictions(**model, zero_shot=Predictions(**twin))


def outputs(model, unit):
    logits = model.image_features.double() @ model.text_features.double().T
    if unit == "cosine":
        return logits
    logits = logits * model.logit_scale
    return logits if unit == "scaled" else logits.softmax(-1)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("unit", ["cosine", "scaled", "probability"])
@pytest.mark.parametrize("same_images", [True, False])
@pytest.mark.parametrize("centered", [False, True])
def test_contrast_is_the_mean_difference_of_the_outputs(unit, stored, same_images, centered):
    test = predictions(stored=stored, scale=20.0, other_scale=25.0, same_images=same_images)
    difference = outputs(test.zero_shot, unit) - outputs(test, unit)
    if centered:
        difference -= difference.mean(-1, keepdim=True)
    truth = difference.abs().mean(-1)
    ours = ContrastAware(unit=unit, centered=centered).contrast(test).double()
    torch.testing.assert_close(ours, truth, rtol=2e-4, atol=2e-6 if unit == "scaled" else 1e-7)


@pytest.mark.parametrize(
    ("z", "factor"),
    [
        (0.0, 1.21),
        (math.log(1.1) / 15 - 1e-9, 1.0),
        (0.00635, 1.0),
        (0.01, 1.1 * math.exp(-0.15)),
        (0.01337, 0.90),
        (0.01338, 0.81),
        (0.1, (1.1 * math.exp(-1.5)) ** 2),
    ],
)
def test_golden_numbers_of_the_defaults(z, factor):
    ours = ContrastAware().factor(torch.tensor([z]))
    assert ours.item() == pytest.approx(factor, rel=2e-4)


def test_the_factor_is_continuous_at_the_upper_bound_and_falls_by_a_tenth_at_the_lower():
    at = torch.tensor([math.log(1.1), math.log(1.1 / 0.9)], dtype=torch.float64) / 15
    low, high = ContrastAware().factor(at - 1e-12), ContrastAware().factor(at + 1e-12)
    assert low.tolist() == pytest.approx([1.0, 0.90])
    assert high.tolist() == pytest.approx([1.0, 0.81])


def test_rows_are_multiplied_by_their_factor():
    test, fitted = predictions(), ContrastAware()
    factor = fitted.factor(fitted.contrast(test)).float()
    assert (factor < 0.9).any() and (factor != factor[0]).any()
    torch.testing.assert_close(fitted.transform(test).logits, test.logits * factor[:, None])


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("unit", ["cosine", "scaled", "probability"])
def test_an_untuned_model_is_sharpened_unless_it_is_kept(unit, stored):
    twin = predictions(stored=stored).zero_shot
    test = Predictions(
        logits=twin.logits,
        image_features=twin.image_features,
        text_features=twin.text_features,
        logit_scale=100.0,
        zero_shot=twin,
    )
    assert ContrastAware(unit=unit).scale(test)[0].tolist() == pytest.approx([1.21] * 40)
    assert ContrastAware(unit=unit, untuned="keep").scale(test)[0].tolist() == [1.0] * 40


def test_keeping_untuned_rows_leaves_tuned_ones_alone():
    test = predictions()
    keep, scale = (ContrastAware(untuned=u).scale(test)[0] for u in ("keep", "scale"))
    assert torch.equal(keep, scale)


def test_components_can_be_left_out_one_by_one():
    z = torch.tensor([0.005, 0.02], dtype=torch.float64)

    def factor(**options):
        return ContrastAware(**options).factor(z).tolist()

    gamma = [1.1 * math.exp(-0.075), 1.1 * math.exp(-0.3)]
    assert factor(piecewise=False) == pytest.approx(gamma)
    assert factor(k=1) == pytest.approx([(1.1 * math.exp(-x)) ** 2 for x in (0.005, 0.02)])
    assert factor(alpha=1.0) == pytest.approx([math.exp(-0.075), math.exp(-0.6)])
    linear = [(1.1 * (1 - 0.075)) ** 2, (1.1 * (1 - 0.3)) ** 2]
    assert factor(decay="linear") == pytest.approx(linear)
    assert factor(lower=0.7, upper=1.2) == pytest.approx(gamma)


def test_a_shift_common_to_all_classes_counts_unless_it_is_centered_away():
    zero_shot = predictions().zero_shot
    test = Predictions(logits=zero_shot.logits + 3, logit_scale=100.0, zero_shot=zero_shot)
    as_published, centered = (
        ContrastAware(centered=c).scale(test)[0].tolist() for c in (False, True)
    )
    assert as_published == pytest.approx([(1.1 * math.exp(-15 * 0.03)) ** 2] * 40, rel=1e-4)
    assert centered == pytest.approx([1.21] * 40, rel=1e-4)


@pytest.mark.parametrize("decay", ["exponential", "linear"])
def test_far_moved_rows_keep_their_order(decay):
    test = predictions(moved=5.0)
    assert ContrastAware(decay=decay).factor(torch.tensor([1e3])).tolist() == [1e-6]
    after = ContrastAware(unit="scaled", decay=decay).transform(test).logits
    assert torch.equal(after.argmax(-1), test.logits.argmax(-1))
    torch.testing.assert_close(after.softmax(-1), torch.full((40, 30), 1 / 30), rtol=1e-3, atol=0)


def test_recorded_factors_count_as_tuning():
    test = predictions(stored=False)
    row, by_class = torch.rand(40) + 0.5, torch.rand(30) + 0.5
    stored = predictions().scaled(row=row, predicted=by_class)
    ours = ContrastAware().contrast(test.scaled(row=row, predicted=by_class))
    torch.testing.assert_close(ours, ContrastAware().contrast(stored), rtol=1e-4, atol=1e-6)
    assert (ours > 2 * ContrastAware().contrast(test)).any()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"unit": "logits"}, "unit must be one of cosine, scaled, probability, got 'logits'"),
        ({"decay": "none"}, "decay must be one of exponential, linear"),
        ({"untuned": "skip"}, "untuned must be one of scale, keep"),
        ({"alpha": 0}, "alpha > 0, k >= 0 .*alpha=0"),
        ({"k": -1}, "k=-1"),
        ({"lower": 1.1}, "lower=1.1, upper=1.0"),
        ({"lower": math.nan}, "lower=nan"),
    ],
)
def test_refuses_options(options, match):
    with pytest.raises(ValueError, match=match):
        ContrastAware(**options)


def test_stored_logits_without_a_scale_have_no_cosines():
    twin = Predictions(logits=torch.eye(3), logit_scale=10.0)
    test = Predictions(logits=torch.eye(3) * 2, zero_shot=twin)
    with pytest.raises(ValueError, match="cac: unit='cosine': needs predictions with logit_scale"):
        ContrastAware().transform(test)
    assert ContrastAware(unit="scaled").contrast(test).tolist() == pytest.approx([1 / 3] * 3)


def test_zero_shot_predictions_are_needed():
    bare = Predictions(logits=torch.eye(3))
    for method in (ContrastAware().fit, ContrastAware().transform):
        with pytest.raises(ValueError, match="cac: needs predictions with zero_shot"):
            method(bare)

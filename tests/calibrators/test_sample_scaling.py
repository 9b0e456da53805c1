"""SaLS against the published formula, its two laws, and rows that have no range."""

from dataclasses import replace

import pytest
import torch

from vlcal.calibrators import SampleAdaptive
from vlcal.types import Predictions, VlcalWarning


@pytest.fixture
def models():
    generator = torch.Generator().manual_seed(0)
    tuned = 30 + 9 * torch.randn(50, 6, generator=generator, dtype=torch.float64)
    zero_shot = 25 + 5 * torch.randn(50, 6, generator=generator, dtype=torch.float64)
    return tuned, zero_shot


def predictions(tuned, zero_shot):
    return Predictions(logits=tuned, zero_shot=Predictions(logits=zero_shot))


def published(tuned, zero_shot):
    low, high = tuned.aminmax(dim=-1, keepdim=True)
    zero_low, zero_high = zero_shot.aminmax(dim=-1, keepdim=True)
    return (tuned - low) / (high - low) * (zero_high - zero_low) + zero_low


def test_two_rows_by_hand():
    # ranges 4 and 8 where zero-shot has 2 and 16
    test = predictions(
        torch.tensor([[1.0, 5.0, 3.0], [0.0, -8.0, 0.0]]),
        torch.tensor([[7.0, 7.0, 9.0], [16.0, 0.0, 1.0]]),
    )
    assert SampleAdaptive().scale(test)[0].tolist() == [0.5, 2.0]
    assert SampleAdaptive().transform(test).logits.tolist() == [[0.5, 2.5, 1.5], [0, -16, 0]]


def test_equals_the_published_form_up_to_a_shift_of_each_row(models):
    ours, theirs = SampleAdaptive().transform(predictions(*models)).logits, published(*models)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_an_untuned_model_stays_as_it_is(models, dtype):
    zero_shot = models[1].to(dtype)
    after = SampleAdaptive().transform(predictions(zero_shot, zero_shot)).logits
    assert torch.equal(after, zero_shot.to(after.dtype))


@pytest.mark.parametrize(("factor", "shift"), [(3.0, -7.0), (0.01, 100.0)])
def test_scale_and_shift_of_tuned_logits_are_undone(models, factor, shift):
    tuned, zero_shot = models
    moved = predictions(tuned * factor + shift, zero_shot)
    ours, theirs = (SampleAdaptive().predict_proba(p) for p in (predictions(*models), moved))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def from_features(seed=0, n=40, c=300):
    generator = torch.Generator().manual_seed(seed)
    image, text, other = (torch.randn(rows, 16, generator=generator) for rows in (n, c, c))
    common = {"image_features": image, "logit_scale": 3.0}
    twin = Predictions(**common, text_features=text + 0.5 * other)
    return Predictions(**common, text_features=text, zero_shot=twin)


def test_ranges_of_features_are_those_of_their_logits():
    test = from_features()
    ours = SampleAdaptive().scale(test)[0]
    tuned, zero_shot = (
        m.image_features.double() @ m.text_features.double().T for m in (test, test.zero_shot)
    )
    ranges = [logits.amax(-1) - logits.amin(-1) for logits in (tuned, zero_shot)]
    torch.testing.assert_close(ours.double(), ranges[1] / ranges[0], rtol=1e-6, atol=0)


def test_recorded_factors_of_features_are_undone():
    test = from_features()
    before = test.scaled(
        row=torch.rand(len(test)) + 0.5, predicted=torch.rand(test.n_classes) + 0.5
    )
    fitted = SampleAdaptive()
    torch.testing.assert_close(fitted.predict_proba(before), fitted.predict_proba(test))


@pytest.mark.parametrize("which", [0, 1])
def test_rows_without_a_range_keep_their_logits_and_are_counted(models, which):
    models = [m.clone() for m in models]
    models[which][[3, 8]] = 5.0
    with pytest.warns(VlcalWarning, match="sals: 2 of 50 rows have equal logits"):
        after = SampleAdaptive().transform(predictions(*models)).logits
    assert torch.equal(after[[3, 8]], models[0][[3, 8]])
    assert not torch.isclose(after[4], models[0][4]).any()


def test_rows_without_a_range_among_features():
    test = from_features()
    image = test.image_features.clone()
    image[5] = 0
    test = replace(test, image_features=image)
    with pytest.warns(VlcalWarning, match="sals: 1 of 40 rows"):
        assert SampleAdaptive().scale(test)[0][5] == 1


@pytest.mark.parametrize("method", ["fit", "transform"])
def test_zero_shot_predictions_are_needed(method):
    with pytest.raises(ValueError, match="sals: needs predictions with zero_shot"):
        getattr(SampleAdaptive(), method)(Predictions(logits=torch.eye(3)))

"""Outcomes of predictions: both forms, every dtype, ties, probabilities as they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vlcal.metrics import outcomes, outcomes_of_probs
from vlcal.types import NoSamplesError, Predictions

FIELDS = ("confidence", "log_likelihood", "brier")


def unit(generator, rows, columns=16):
    return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator), dim=-1)


@pytest.fixture
def fused():
    generator = torch.Generator().manual_seed(0)
    return Predictions(
        image_features=unit(generator, 200),
        text_features=unit(generator, 23),
        logit_scale=100.0,
        labels=torch.randint(23, (200,), generator=generator),
    )


def stored(predictions):
    return predictions.with_logits(torch.cat([block for _, block in predictions.blocks()]))


def test_toy_by_hand():
    logits = torch.tensor([[3.0, 1.0, 1.0], [1.0, 1.0, 2.0]]).log()
    seen = outcomes(Predictions(logits=logits, labels=torch.tensor([0, 1])))
    assert seen.predicted.tolist() == [0, 2]
    assert seen.correct.tolist() == [True, False]
    assert seen.confidence.tolist() == pytest.approx([0.6, 0.5])
    assert seen.log_likelihood.exp().tolist() == pytest.approx([0.6, 0.25])
    assert seen.brier.tolist() == pytest.approx([0.16 + 2 * 0.04, 0.75**2 + 0.25**2 + 0.25])


def test_scaled_features_and_stored_logits_agree(fused):
    scaled = fused.scaled(row=torch.linspace(0.5, 1.5, 200))
    scaled = scaled.scaled(predicted=torch.linspace(0.7, 1.2, 23))
    fast, slow = outcomes(scaled), outcomes(stored(scaled))
    assert torch.equal(fast.predicted, slow.predicted)
    assert torch.equal(fast.correct, slow.correct)
    for field in FIELDS:
        a, b = getattr(fast, field).double(), getattr(slow, field).double()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# float32 logits are summed in float32
FLOAT32 = {"rtol": 1e-5, "atol": 2e-6, "check_dtype": False}


def test_probabilities_and_logits_agree(fused):
    predictions = stored(replace(fused, logit_scale=20.0))  # no label below the floor
    probs = predictions.logits.double().softmax(-1)
    a, b = outcomes(predictions), outcomes_of_probs(probs, predictions.labels)
    for field in FIELDS:
        torch.testing.assert_close(getattr(a, field), getattr(b, field), **FLOAT32)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_stored_logits_match_a_float64_softmax_row_by_row(fused, dtype, near):
    predictions = stored(fused)
    predictions = predictions.with_logits(predictions.logits.to(dtype))
    logits, labels = predictions.logits.double().numpy(), predictions.labels.numpy()
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    seen = outcomes(predictions)
    hot = np.eye(23)[labels]
    np.testing.assert_allclose(seen.confidence, probs.max(-1), rtol=near)
    np.testing.assert_allclose(seen.log_likelihood.exp(), (probs * hot).sum(-1), rtol=100 * near)
    np.testing.assert_allclose(seen.brier, ((probs - hot) ** 2).sum(-1), atol=near)


def test_the_first_of_tied_classes_is_predicted():
    logits = torch.tensor([[0.0, 5.0, 5.0], [7.0, 7.0, 7.0]], dtype=torch.float16)
    assert outcomes(
        Predictions(logits=logits, labels=torch.zeros(2).long())
    ).predicted.tolist() == [
        1,
        0,
    ]


def test_an_impossible_label_costs_87_nats():
    seen = outcomes_of_probs(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert seen.log_likelihood.item() == pytest.approx(-87.3, abs=0.1)
    assert seen.brier.item() == 2


def test_one_class_is_certain():
    seen = outcomes(Predictions(logits=torch.randn(4, 1), labels=torch.zeros(4).long()))
    assert seen.confidence.tolist() == [1] * 4
    assert seen.log_likelihood.tolist() == seen.brier.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("predictions", "proximity", "error", "match"),
    [
        (Predictions(logits=torch.zeros(3, 2)), None, ValueError, "with labels"),
        (
            Predictions(logits=torch.zeros(0, 2), labels=torch.zeros(0).long()),
            None,
            NoSamplesError,
            "at least one sample",
        ),
        (
            Predictions(logits=torch.zeros(3, 2), labels=torch.zeros(3).long()),
            torch.ones(2),
            ValueError,
            r"\[N\] = \[3\], got \(2,\)",
        ),
    ],
)
def test_refuses(predictions, proximity, error, match):
    with pytest.raises(error, match=match):
        outcomes(predictions, proximity)

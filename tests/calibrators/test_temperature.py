import math

import numpy as np
import pytest
import torch

from vlcal.calibrators import TemperatureScaling
from vlcal.calibrators.temperature import nll_slope
from vlcal.types import NoSamplesError, Predictions, VlcalWarning


def drawn(temperature, n=4000, classes=7, seed=0, dtype=torch.float64):
    """Logits that are right in distribution at `temperature`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
    return Predictions(logits=logits.to(dtype), labels=labels)


def nll(predictions, temperature):
    logits = predictions.logits.double() / temperature
    return float(torch.nn.functional.cross_entropy(logits, predictions.labels))


def test_two_classes_by_hand():
    # margin 3, right three times of four: sigmoid(3 / T) = 3 / 4
    logits = torch.tensor([[3.0, 0.0]]).expand(4, 2)
    val = Predictions(logits=logits, labels=torch.tensor([0, 0, 0, 1]))
    assert TemperatureScaling().fit(val).temperature_ == pytest.approx(3 / math.log(3), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 2.5, 30.0])
def test_finds_the_temperature_the_labels_were_drawn_at(temperature):
    found = TemperatureScaling().fit(drawn(temperature, n=20_000)).temperature_
    assert found == pytest.approx(temperature, rel=0.35 if temperature > 10 else 0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.01, 1.0, 60.0])
def test_equals_the_minimum_of_scipy(scale, dtype):
    from scipy.optimize import minimize_scalar

    val = drawn(1.7, seed=3)
    val = val.with_logits((val.logits * scale).to(dtype))
    found = TemperatureScaling().fit(val).temperature_
    best = minimize_scalar(lambda u: nll(val, np.exp(u)), bounds=(-6, 6), method="bounded")
    # a minimum of values is only known to the square root of the rounding
    assert math.log(found) == pytest.approx(best.x, abs=1e-4)
    assert abs(nll_slope(val, 1 / found)[0]) < 1e-9 * scale


def test_the_slope_is_the_derivative_of_the_nll():
    val, step = drawn(1.3), 1e-5
    slope, curvature = nll_slope(val, 0.8)
    up, at, down = (nll(val, 1 / beta) for beta in (0.8 + step, 0.8, 0.8 - step))
    assert slope == pytest.approx((up - down) / (2 * step), rel=1e-6)
    assert curvature == pytest.approx((up - 2 * at + down) / step**2, rel=1e-3)


def test_few_passes_over_the_data(monkeypatch):
    from vlcal.calibrators import temperature

    passes = []
    original = temperature.nll_slope
    monkeypatch.setattr(temperature, "nll_slope", lambda *args: passes.append(1) or original(*args))
    TemperatureScaling().fit(drawn(2.0))
    assert len(passes) <= 12


def test_scaling_never_raises_the_validation_nll():
    val = drawn(0.6)
    test = Predictions(logits=val.logits, labels=val.labels)
    fitted = TemperatureScaling().fit(val)
    scaled = test.scaled(row=fitted.scale(test)[0])
    assert nll(scaled, 1) < nll(test, 1)


@pytest.mark.parametrize(
    ("logits", "labels", "temperature", "match"),
    [
        (torch.eye(3) * 9, [0, 1, 2], 1e-3, "colder is always better"),
        (torch.eye(3) * 9, [1, 2, 0], 1e3, "hotter is always better"),
        (torch.ones(3, 3), [0, 1, 2], 1, "every temperature has the same NLL"),
        (torch.ones(2, 1), [0, 0], 1, "every temperature has the same NLL"),
    ],
)
def test_stops_at_the_bounds_and_says_why(logits, labels, temperature, match):
    val = Predictions(logits=logits, labels=torch.tensor(labels))
    with pytest.warns(VlcalWarning, match=match):
        assert TemperatureScaling().fit(val).temperature_ == pytest.approx(temperature)


def test_perfectly_calibrated_logits_keep_their_temperature():
    # the label distribution of every row is its softmax, exactly
    logits = torch.tensor([[1.0, 1.0, 2.0], [2.0, 1.0, 1.0]], dtype=torch.float64).log()
    val = Predictions(
        logits=logits.repeat_interleave(4, 0), labels=torch.tensor([0, 1, 2, 2, 0, 0, 1, 2])
    )
    assert TemperatureScaling().fit(val).temperature_ == pytest.approx(1, rel=1e-9)


def test_refuses():
    with pytest.raises(ValueError, match="ts: needs predictions with labels"):
        TemperatureScaling().fit(Predictions(logits=torch.zeros(2, 2)))
    empty = Predictions(logits=torch.zeros(0, 2), labels=torch.zeros(0).long())
    with pytest.raises(NoSamplesError, match="at least one sample"):
        TemperatureScaling().fit(empty)
    with pytest.raises(ValueError, match="0 < lowest < highest"):
        TemperatureScaling(lowest=2, highest=1)

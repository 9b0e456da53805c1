import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vlcal.calibrators import TemperatureScaling, TemperatureSums
from vlcal.calibrators.nll import nll_slope
from vlcal.calibrators.temperature import rate
from vlcal.types import NoSamplesError, Predictions, VlcalWarning


def drawn(temperature, n=4000, classes=7, seed=0, dtype=torch.float64):
    """Logits that are right in distribution at `temperature`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
    return Predictions(logits=logits.to(dtype), labels=labels)


def features(n=500, classes=20, seed=0, factors=False):
    """Predictions without logits, with labels that follow them at temperature 2."""
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(rows, 8, generator=generator) for rows in (n, classes))
    drawn = Predictions(image_features=image, text_features=text, logit_scale=3.0)
    if factors:
        drawn = drawn.scaled(row=torch.rand(n, generator=generator) + 0.5)
    logits = torch.cat([block for _, block in drawn.blocks()])
    labels = torch.multinomial((logits / 2).softmax(-1), 1, generator=generator)[:, 0]
    return replace(drawn, labels=labels)


def shards(val, size):
    return [val.select(rows) for rows in torch.arange(len(val)).split(size)]


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
    original = nll_slope
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


def test_features_give_the_temperature_of_their_logits():
    val = features(factors=True)
    logits = torch.cat([block for _, block in val.blocks()])
    expected = TemperatureScaling().fit(val.with_logits(logits)).temperature_
    assert TemperatureScaling().fit(val).temperature_ == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [1, 97, 500])
def test_a_stream_gives_the_temperature_of_the_whole(size):
    # logits are stored, because a product of one row may round in another way
    val = drawn(1.7, n=500 if size > 1 else 60)
    calls = []

    def parts():
        calls.append(1)
        yield val.select(torch.arange(0))
        yield from shards(val, size)

    streamed = TemperatureScaling().fit_stream(parts)
    assert streamed.temperature_ == pytest.approx(
        TemperatureScaling().fit(val).temperature_, rel=1e-9
    )
    assert len(calls) <= 12


def test_a_used_up_stream_is_noticed():
    used = iter(shards(features(), 100))
    with pytest.raises(ValueError, match=r"used up\), got 500 samples first and 0 later"):
        TemperatureScaling().fit_stream(lambda: used)


def test_every_part_of_a_stream_is_known_as_fitted_on():
    parts = shards(features(), 100)
    fitted = TemperatureScaling().fit_stream(lambda: parts)
    with pytest.warns(VlcalWarning, match="fitted on the very predictions"):
        fitted.transform(parts[3])


@pytest.mark.parametrize("temperature", [0.1, 0.7, 2.5, 6.0])
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_sums_of_one_pass_give_the_exact_temperature_to_the_stated_error(temperature, scale):
    val = drawn(temperature)
    val = val.with_logits(val.logits * scale)
    exact = TemperatureScaling().fit(val).temperature_
    sums = TemperatureScaling().fit_sums(TemperatureSums.of(val)).temperature_
    assert sums == pytest.approx(exact, rel=4e-6)


def test_two_shards_add_up_to_the_whole():
    val = features()
    a, b = shards(val, 180)[0], val.select(torch.arange(180, 500))
    merged = TemperatureSums.of(b) + TemperatureSums.of(a)
    whole = TemperatureSums.of(val)
    assert merged.n == whole.n == 500
    torch.testing.assert_close(merged.slope, whole.slope, rtol=1e-9, atol=1e-9)
    fitted = TemperatureScaling().fit_sums(merged)
    expected = TemperatureScaling().fit_sums(whole).temperature_
    assert fitted.temperature_ == pytest.approx(expected, rel=1e-9)
    with pytest.warns(VlcalWarning, match="fitted on the very predictions"):
        fitted.transform(a)


def test_shards_may_have_other_classes_and_none_at_all():
    val, other = features(), features(classes=7, seed=4)
    empty = TemperatureSums.of(val.select(torch.arange(0)))
    both = TemperatureSums.of(val) + TemperatureSums.of(other) + empty
    streamed = TemperatureScaling().fit_stream(lambda: [val, other]).temperature_
    assert TemperatureScaling().fit_sums(both).temperature_ == pytest.approx(streamed, rel=4e-6)


def test_interpolated_slope_is_exact_on_the_grid_and_close_between():
    val = drawn(1.3)
    sums = TemperatureSums.of(val, points=9, lowest=0.5, highest=2.0)
    for beta in sums.grid.tolist():
        assert sums.at(beta) == pytest.approx(nll_slope(val, beta), rel=1e-9)
    assert sums.at(0.93)[0] == pytest.approx(nll_slope(val, 0.93)[0], abs=1e-4)
    step = 1e-6
    derivative = (sums.at(0.93 + step)[0] - sums.at(0.93 - step)[0]) / (2 * step)
    assert sums.at(0.93)[1] == pytest.approx(derivative, rel=1e-6)


def test_sums_stop_at_the_ends_of_their_grid():
    with pytest.warns(VlcalWarning, match="hotter is always better"):
        sums = TemperatureSums.of(drawn(9.0), lowest=0.5, highest=2.0)
        assert TemperatureScaling().fit_sums(sums).temperature_ == 2.0


def plain_sgd(val, dtype=torch.float64, epochs=20):
    """The published recipe with autograd: what is learned is the logarithm of the scale."""
    log_scale = torch.tensor(math.log(val.logit_scale), dtype=dtype, requires_grad=True)
    cosines = val.image_features.double() @ val.text_features.double().T
    optimizer = torch.optim.SGD([log_scale], lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate(epoch, epochs)
        for rows in torch.arange(len(val)).split(100):
            optimizer.zero_grad()
            logits = log_scale.double().exp() * cosines[rows]
            torch.nn.functional.cross_entropy(logits, val.labels[rows]).backward()
            optimizer.step()
    return float(log_scale.detach())


def test_the_replay_equals_the_recipe_written_with_autograd():
    val = features(n=230)
    fitted = TemperatureScaling(solver="sgd").fit(val)
    log_scale = math.log(val.logit_scale / fitted.temperature_)
    assert log_scale == pytest.approx(plain_sgd(val), rel=1e-6)
    assert fitted.temperature_ == pytest.approx(TemperatureScaling().fit(val).temperature_, rel=0.2)


def test_the_replay_in_half_precision_ends_on_a_float16():
    val = features(n=230)
    scale = val.logit_scale / TemperatureScaling(solver="sgd", half=True).fit(val).temperature_
    rounded = float(torch.tensor(scale, dtype=torch.float16))
    assert scale == pytest.approx(rounded, rel=1e-9)
    assert math.log(scale) == pytest.approx(plain_sgd(val, torch.float16), abs=2**-8)


def test_rates_of_the_replay():
    rates = [rate(epoch, 5, base=0.0035) for epoch in range(5)]
    assert rates == pytest.approx([1e-5, 0.0035, 0.003166, 0.002291, 0.001209], rel=1e-3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: TemperatureScaling(solver="lbfgs"), "solver must be one of exact, sgd"),
        (lambda: TemperatureScaling(half=True), "half=True belongs to solver='sgd'"),
        (
            lambda: TemperatureScaling(solver="sgd").fit(drawn(1.0, n=5)),
            "solver='sgd': needs predictions with logit_scale",
        ),
        (
            lambda: TemperatureScaling(solver="sgd").fit_stream(list),
            "fit_stream needs solver='exact'",
        ),
        (
            lambda: TemperatureScaling(solver="sgd").fit_sums(TemperatureSums.of(features())),
            "fit_sums needs solver='exact'",
        ),
        (lambda: TemperatureScaling().fit_stream(list), "at least one sample"),
        (lambda: TemperatureSums.of(features(), points=1), "points >= 2 must hold"),
        (lambda: TemperatureSums.of(replace(features(), labels=None)), "labels"),
        (
            lambda: TemperatureSums.of(features()) + TemperatureSums.of(features(), points=5),
            "the same grid only, got 65 temperatures .* and 5",
        ),
    ],
)
def test_streams_sums_and_solvers_refuse(call, match):
    with pytest.raises(ValueError, match=match):
        call()

"""What must hold for every calibrator of the tuple, and for a chain of them."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from vlcal.calibrators import (
    CALIBRATORS,
    Chain,
    FittedOnTest,
    NotFitted,
    calibrator,
    load_calibrator,
    save_calibrator,
)
from vlcal.metrics import outcomes
from vlcal.types import Predictions

MAKERS = {cls.name: cls for cls in CALIBRATORS} | {
    "chain": lambda: Chain([cls() for cls in CALIBRATORS])
}
every_calibrator = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def world(names, seed, n=300):
    """Predictions of a model whose text features were moved by tuning, and of the model before."""
    generator = torch.Generator().manual_seed(seed)
    zero_shot = normalize(torch.randn(len(names), 12, generator=generator), dim=-1)
    shift = torch.randn(len(names), 12, generator=generator)
    labels = torch.randint(len(names), (n,), generator=generator)
    image = zero_shot[labels] + 0.5 * torch.randn(n, 12, generator=generator)
    common = {"image_features": normalize(image, dim=-1), "logit_scale": 50.0, "labels": labels}
    return Predictions(
        **common,
        text_features=normalize(zero_shot + 0.2 * shift, dim=-1),
        class_names=tuple(names),
        zero_shot=Predictions(**common, text_features=zero_shot),
    )


def stored(predictions):
    return predictions.with_logits(torch.cat([block for _, block in predictions.blocks()]))


@pytest.fixture
def val():
    return world([f"base {i}" for i in range(9)], seed=0)


@pytest.fixture
def fresh():
    return world([f"new {i}" for i in range(7)] + ["base 1"], seed=1)


def logits_of(predictions):
    return torch.cat([block for _, block in predictions.blocks()])


@every_calibrator
def test_stored_and_recorded_scales_give_the_same_numbers(make, val, fresh):
    fused = make().fit(val).transform(fresh)
    full = make().fit(stored(val)).transform(stored(fresh))
    assert fused.logits is None
    torch.testing.assert_close(logits_of(fused), full.logits, rtol=1e-5, atol=1e-5)
    a, b = outcomes(fused), outcomes(full)
    assert torch.equal(a.predicted, b.predicted)
    torch.testing.assert_close(a.confidence.double(), b.confidence.double(), rtol=0, atol=1e-5)


@every_calibrator
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_keeps_every_argmax_where_declared(make, val, fresh, dtype):
    fitted = make().fit(val)
    assert fitted.keeps_argmax
    logits = logits_of(fresh).to(dtype)
    logits[::3, 4] = logits[::3].amax(-1)  # ties with a later or an earlier class
    logits[1::3] = logits[1::3].round()
    ties = fresh.with_logits(logits)
    after = fitted.transform(ties)
    assert torch.equal(after.logits.argmax(-1), logits.argmax(-1))
    assert torch.equal(outcomes(after).predicted, outcomes(ties).predicted)


@every_calibrator
def test_transform_changes_neither_the_calibrator_nor_its_input(make, val, fresh, tmp_path):
    fitted = make().fit(val)
    save_calibrator(fitted, tmp_path / "before")
    before = logits_of(fresh)
    first = logits_of(fitted.transform(fresh))
    assert torch.equal(logits_of(fresh), before)
    assert torch.equal(logits_of(fitted.transform(fresh)), first)
    save_calibrator(fitted, tmp_path / "after")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()


@every_calibrator
def test_saved_calibrators_come_back(make, val, fresh, tmp_path):
    fitted = make().fit(val)
    save_calibrator(fitted, tmp_path / "c.safetensors")
    again = load_calibrator(tmp_path / "c.safetensors")
    assert type(again) is type(fitted)
    assert torch.equal(logits_of(again.transform(fresh)), logits_of(fitted.transform(fresh)))


@every_calibrator
def test_new_classes_only_need_no_labels(make, val, fresh):
    fitted = make().fit(val)
    assert fitted.handles_new_classes
    assert fitted.transform(replace(fresh, labels=None)).n_classes == 8


@every_calibrator
def test_needs_are_what_fit_asks_for(make, val):
    for need in make().needs:
        with pytest.raises(ValueError, match=need):
            make().fit(replace(stored(val), **{need: None}))


@every_calibrator
def test_fit_comes_before_transform(make, fresh):
    with pytest.raises(NotFitted, match="fit comes before transform"):
        make().transform(fresh)


@pytest.mark.parametrize(
    "make", [make for make in MAKERS.values() if "labels" in make().needs], ids=["ts", "chain"]
)
def test_fitting_on_the_test_data_warns(make, val):
    copied = replace(val, image_features=val.image_features.clone())
    with pytest.warns(FittedOnTest, match="fitted on the very predictions"):
        make().fit(val).transform(copied)


def test_chain_fits_later_steps_on_what_earlier_steps_made(val, fresh):
    from vlcal.calibrators import DistanceAware, TemperatureScaling

    twice = Chain([TemperatureScaling(), TemperatureScaling()]).fit(val)
    assert twice.steps[1].temperature_ == pytest.approx(1, rel=1e-5)
    first, second = TemperatureScaling().fit(val), DistanceAware().fit(val)
    chained = Chain([TemperatureScaling(), DistanceAware()]).fit(val).transform(fresh)
    by_hand = second.transform(first.transform(fresh))
    assert torch.equal(logits_of(chained), logits_of(by_hand))


def test_an_empty_chain_is_the_identity(val):
    assert Chain().fit(val).transform(val) is val


def test_calibrators_are_found_by_name_or_path():
    assert calibrator("ts") is CALIBRATORS[0]
    assert calibrator("vlcal.calibrators.base:Chain") is Chain
    with pytest.raises(ValueError, match="unknown name 'tempscale'; known: ts, dac"):
        calibrator("tempscale")
    with pytest.raises(ValueError, match="has no class 'Nothing'"):
        calibrator("vlcal.calibrators.base:Nothing")

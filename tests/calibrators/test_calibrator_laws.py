"""What must hold for every calibrator of the tuple, and for a chain of them, by its declarations.

A calibrator joins by standing in `CALIBRATORS`; options that change a declaration join in `MAKERS`.
"""

import warnings
from dataclasses import fields, replace

import pytest
import torch
from torch.nn.functional import normalize

from vlcal.calibrators import (
    CALIBRATORS,
    Chain,
    DistanceAware,
    FittedOnTest,
    NewClasses,
    NotFitted,
    RowScaling,
    TemperatureScaling,
    calibrator,
    load_calibrator,
    save_calibrator,
)
from vlcal.metrics import outcomes
from vlcal.types import Predictions

# small samples make some calibrators warn, which their own tests look at
pytestmark = pytest.mark.filterwarnings("ignore::vlcal.types.VlcalWarning")

MAKERS = {cls.name: cls for cls in CALIBRATORS} | {
    "chain": lambda: Chain([TemperatureScaling(), DistanceAware()])
}
BASE = tuple(f"base {i}" for i in range(9))


def every_calibrator(holds=lambda made: True):
    """Parametrize over the calibrators whose declarations fulfill a condition."""
    chosen = {name: make for name, make in MAKERS.items() if holds(make())}
    return pytest.mark.parametrize("make", chosen.values(), ids=chosen.keys())


def only_scales(made):
    steps = made.steps if isinstance(made, Chain) else [made]
    return all(isinstance(step, RowScaling) for step in steps)


def learns(made):
    """Whether `fit` keeps anything; what learns nothing may be applied without it."""
    return isinstance(made, Chain) or any(each.name.endswith("_") for each in fields(made))


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


def logits_of(predictions):
    return torch.cat([block for _, block in predictions.blocks()])


def stored(predictions):
    twin = predictions.zero_shot
    twin = None if twin is None else twin.with_logits(logits_of(twin))
    return replace(predictions.with_logits(logits_of(predictions)), zero_shot=twin)


@pytest.fixture
def val():
    return world(BASE, seed=0)


@pytest.fixture
def fresh():
    """New classes, and one of those of fit."""
    return world([f"new {i}" for i in range(7)] + ["base 1"], seed=1)


@pytest.fixture
def unseen(make, fresh):
    """New classes for calibrators that handle them, else other images of the same classes."""
    return fresh if make().handles_new_classes else replace(world(BASE, seed=0, n=200), labels=None)


@every_calibrator()
def test_stored_logits_and_features_give_the_same_numbers(make, val, unseen):
    fitted = make().fit(val)
    fused, full = fitted.transform(unseen), make().fit(stored(val)).transform(stored(unseen))
    assert (fused.logits is None) == only_scales(fitted)
    torch.testing.assert_close(logits_of(fused), full.logits, rtol=1e-5, atol=1e-4)
    labels = torch.zeros(len(unseen)).long()
    a, b = (outcomes(replace(each, labels=labels)) for each in (fused, full))
    assert torch.equal(a.predicted, b.predicted)
    torch.testing.assert_close(a.confidence.double(), b.confidence.double(), rtol=0, atol=1e-5)


@every_calibrator(only_scales)
def test_factors_of_features_are_found_and_used_without_making_logits(
    make, val, fresh, monkeypatch
):
    fitted = make().fit(val)

    def refuse(*_):
        raise AssertionError("a block of logits was made")

    monkeypatch.setattr(Predictions, "_block", refuse)
    assert len(outcomes(fitted.transform(fresh)).confidence) == len(fresh)


@every_calibrator(lambda made: made.keeps_argmax)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_keeps_every_argmax_where_declared(make, val, unseen, dtype):
    fitted = make().fit(val)
    logits = logits_of(unseen).to(dtype)
    logits[::3, 4] = logits[::3].amax(-1)  # ties with a later or an earlier class
    logits[1::3] = logits[1::3].round()
    ties = replace(unseen.with_logits(logits), labels=torch.zeros(len(unseen)).long())
    after = fitted.transform(ties)
    assert torch.equal(after.logits.argmax(-1), logits.argmax(-1))
    assert torch.equal(outcomes(after).predicted, outcomes(ties).predicted)


@every_calibrator()
def test_transform_changes_neither_the_calibrator_nor_its_input(make, val, unseen, tmp_path):
    fitted = make().fit(val)
    save_calibrator(fitted, tmp_path / "before")
    before = logits_of(unseen)
    first = logits_of(fitted.transform(unseen))
    fitted.predict_proba(unseen)
    assert torch.equal(logits_of(unseen), before)
    assert torch.equal(logits_of(fitted.transform(unseen)), first)
    save_calibrator(fitted, tmp_path / "after")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()


@every_calibrator()
def test_saved_calibrators_come_back(make, val, unseen, tmp_path):
    fitted = make().fit(val)
    save_calibrator(fitted, tmp_path / "c.safetensors")
    again = load_calibrator(tmp_path / "c.safetensors")
    assert type(again) is type(fitted)
    assert torch.equal(logits_of(again.transform(unseen)), logits_of(fitted.transform(unseen)))


@every_calibrator()
def test_probabilities_are_those_of_the_transformed_logits(make, val, unseen):
    fitted = make().fit(val)
    probs = fitted.predict_proba(unseen)
    assert probs.shape == (len(unseen), unseen.n_classes)
    # 1e-9: what mir adds to keep the order of equal values
    assert bool(((probs >= 0) & (probs <= 1 + 1e-9)).all())
    # some methods do not normalize their rows
    ours = (probs / probs.sum(-1, keepdim=True)).double()
    theirs = logits_of(fitted.transform(unseen)).double().softmax(-1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@every_calibrator()
def test_every_row_is_calibrated_by_itself(make, val, unseen):
    fitted = make().fit(val)
    rows = torch.tensor([7, 3, 3, 11])
    few = fitted.predict_proba(unseen.select(rows))
    torch.testing.assert_close(few, fitted.predict_proba(unseen)[rows], rtol=1e-5, atol=1e-6)
    nothing = fitted.transform(unseen.select(torch.arange(0)))
    assert (len(nothing), nothing.n_classes) == (0, unseen.n_classes)


@every_calibrator()
def test_the_order_of_the_rows_of_fit_does_not_matter(make, val, unseen):
    shuffled = val.select(torch.randperm(len(val)))
    a, b = (make().fit(each).predict_proba(unseen) for each in (val, shuffled))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@every_calibrator(lambda made: made.handles_new_classes)
def test_new_classes_need_no_labels(make, val, fresh):
    assert make().fit(val).transform(replace(fresh, labels=None)).n_classes == 8


@every_calibrator(lambda made: not made.handles_new_classes)
@pytest.mark.parametrize("method", ["transform", "predict_proba"])
def test_new_classes_are_refused_with_the_reason(make, val, fresh, method):
    apply = getattr(make().fit(val), method)
    with pytest.raises(NewClasses, match=r"'new 0' is not one of them .*ts, dac, cac, sals"):
        apply(fresh)
    with pytest.raises(NewClasses, match="these predictions have 8"):
        apply(replace(fresh, class_names=None))
    with pytest.raises(NewClasses, match="another order"):
        apply(replace(val, class_names=val.class_names[::-1]))


@every_calibrator()
def test_needs_are_what_fit_asks_for(make, val):
    for need in make().needs:
        with pytest.raises(ValueError, match=need):
            make().fit(replace(stored(val), **{need: None}))


@every_calibrator(learns)
@pytest.mark.parametrize("method", ["transform", "predict_proba"])
def test_fit_comes_first(make, fresh, method):
    with pytest.raises(NotFitted, match="fit comes before"):
        getattr(make(), method)(fresh)


@every_calibrator(lambda made: not learns(made))
def test_what_learns_nothing_needs_no_fit(make, val, fresh):
    fitted, bare = make().fit(val).transform(fresh), make().transform(fresh)
    assert torch.equal(logits_of(fitted), logits_of(bare))


@every_calibrator(lambda made: "labels" in made.needs)
@pytest.mark.parametrize("method", ["transform", "predict_proba"])
def test_fitting_on_the_test_data_warns(make, val, method):
    fitted = make().fit(val)
    copied = replace(val, image_features=val.image_features.clone())
    with pytest.warns(FittedOnTest, match="fitted on the very predictions"):
        getattr(fitted, method)(copied)


@every_calibrator()
def test_other_data_and_unlabeled_methods_do_not_warn(make, val, unseen):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FittedOnTest)
        fitted = make().fit(val)
        fitted.transform(unseen)
        if "labels" not in fitted.needs:
            fitted.transform(val)


def test_chain_fits_later_steps_on_what_earlier_steps_made(val, fresh):
    twice = Chain([TemperatureScaling(), TemperatureScaling()]).fit(val)
    assert twice.steps[1].temperature_ == pytest.approx(1, rel=1e-5)
    first, second = TemperatureScaling().fit(val), DistanceAware().fit(val)
    chained = Chain([TemperatureScaling(), DistanceAware()]).fit(val).transform(fresh)
    by_hand = second.transform(first.transform(fresh))
    assert torch.equal(logits_of(chained), logits_of(by_hand))


def test_an_empty_chain_is_the_identity(val):
    assert Chain().fit(val).transform(val) is val
    torch.testing.assert_close(Chain().predict_proba(val), logits_of(val).softmax(-1))


def test_calibrators_are_found_by_name_or_path():
    assert calibrator("ts") is CALIBRATORS[0]
    assert calibrator("vlcal.calibrators.base:Chain") is Chain
    with pytest.raises(ValueError, match="unknown name 'tempscale'; known: ts, dac"):
        calibrator("tempscale")
    with pytest.raises(ValueError, match="has no class 'Nothing'"):
        calibrator("vlcal.calibrators.base:Nothing")

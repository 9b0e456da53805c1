"""Training in float16: torch.amp's loop, steps left out, resumption, methods of two losses."""

import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.test_training import CLASSES, SHORT, loader, state
from vlcal.clip import tiny_clip
from vlcal.regularizers import Regularizer
from vlcal.training import TrainingDiverged, fit
from vlcal.tuners import TUNERS, CoOp, ProDA, ProGrad, Recipe, precision, prograd
from vlcal.tuners.precision import GROW_AFTER, LossScale
from vlcal.types import Batch

HALF = replace(SHORT, precision="fp16")


@pytest.fixture(scope="module")
def clip():
    torch.set_num_threads(1)
    return tiny_clip(0)


@pytest.fixture(autouse=True)
def start(monkeypatch):
    """A factor that the tiny model's own gradients do not overflow at."""
    monkeypatch.setattr(precision, "START", 2.0**8)


class Bumpy(Regularizer):
    """Adds nothing to the loss, but NaN to the gradients of some steps."""

    name = "bumpy"

    def __init__(self, *steps):
        self.steps, self.count = steps, 0

    def penalty(self, out, encode_text):
        self.count += 1
        # the slope of a root at 0, times 0
        zero = out.text_features.sum() * 0
        return zero.square().sqrt() if self.count - 1 in self.steps else zero

    def state_dict(self):
        return {"count": torch.tensor(self.count)}

    def load_state_dict(self, state):
        self.count = int(state["count"])


def trained(clip, recipe=HALF, *regularizers, **options):
    tuner = CoOp(clip, CLASSES, ctx_init="a photo of a")
    return tuner, fit(tuner, loader(), recipe, regularizers, seed=3, **options)


# -- the loop of torch.amp


@pytest.mark.parametrize(("start", "steps"), [(2.0**8, (0, 1, 4)), (2.0**20, ())])
def test_loop_is_autocast_with_the_gradient_scaler_of_torch(clip, monkeypatch, start, steps):
    monkeypatch.setattr(precision, "START", start)
    tuner, history = trained(clip, HALF, Bumpy(*steps))
    twin, batches, bumpy = CoOp(clip, CLASSES, ctx_init="a photo of a"), loader(), Bumpy(*steps)
    batches.generator.manual_seed(3000)
    optimizer = torch.optim.SGD(twin.parameters(), 1.0, momentum=0.9, weight_decay=5e-4)
    scaler, skipped = torch.amp.GradScaler("cpu", init_scale=start), [0] * 4
    for epoch in range(4):
        optimizer.param_groups[0]["lr"] = HALF.rate(epoch)
        for batch in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                out = twin(batch.images)
                loss = torch.nn.functional.cross_entropy(out.logits, batch.labels)
                loss = loss + bumpy.penalty(out, twin.encode_text)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            before = scaler.get_scale()
            scaler.update()
            skipped[epoch] += scaler.get_scale() < before
    assert torch.equal(state(tuner), state(twin))
    assert [row["skipped"] for row in history] == skipped and sum(skipped) >= 3


def test_factor_follows_that_of_torch():
    ours, theirs = LossScale(), torch.amp.GradScaler("cpu", precision.START)
    assert theirs.get_growth_interval() == GROW_AFTER
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], 0.0)
    theirs.scale(torch.zeros(()))
    overflows = {5, 6, GROW_AFTER + 3}
    for step in range(2 * GROW_AFTER + 10):
        parameter.grad = torch.tensor([1.0, float("inf") if step in overflows else 0.0, 2.0])
        ours.accepts([parameter.grad])
        theirs.step(optimizer)
        theirs.update()
        assert ours.value == theirs.get_scale()
    assert ours.skipped == 3 and ours.value == 2.0**6


def test_loss_falls(clip):
    tuner, history = trained(clip)
    assert state(tuner).dtype == torch.float32
    assert history[-1]["cross_entropy"] < history[0]["cross_entropy"] - 0.1
    assert "skipped" in history[0] and "skipped" not in trained(clip, SHORT)[1][0]


def test_float16_stays_closer_to_float32_than_bfloat16(clip):
    # a small rate: with a large one rounding grows as any other difference does
    single, half, brief = (
        state(trained(clip, replace(SHORT, lr=0.002, precision=kind))[0])
        for kind in ("fp32", "fp16", "bf16")
    )
    assert 0 < float((half - single).norm() / single.norm()) < 1e-3
    assert float((half - single).norm()) < float((brief - single).norm()) / 3


def test_evaluation_stays_float32(clip):
    tuner, _ = trained(clip)
    x = next(iter(loader())).images
    with torch.no_grad():
        expected = clip.logit_scale * x @ tuner.encode_text(CLASSES.names).T
        torch.testing.assert_close(tuner.predict(x).logits, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("cls", TUNERS[1:], ids=lambda cls: cls.name)
def test_every_tuner_trains_in_float16(clip, cls):
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    batch, learned = Batch(images, torch.arange(4), torch.arange(4)), []
    for kind in ("fp32", "fp16"):
        tuner = cls(clip, CLASSES)
        before = state(tuner)
        history = fit(tuner, [batch], Recipe(epochs=2, lr=1e-3, precision=kind))
        learned.append(state(tuner) - before)
    assert [row["skipped"] for row in history] == [0, 0]
    single, half = learned
    assert 0 < float((half - single).norm()) < 0.1 * float(single.norm())


# -- steps that are left out


def test_a_step_that_is_left_out_changes_no_bit(clip, tmp_path):
    batch, seen = next(iter(loader())), []
    path, epochs = tmp_path / "state", replace(HALF, epochs=4)

    def look(epoch, step, losses):
        # the file holds what the epochs before this one left
        seen.append(load_file(path) if epoch else None)

    tuner = CoOp(clip, CLASSES, ctx_init="a photo of a")
    fit(tuner, [batch], epochs, [Bumpy(2)], progress=look, checkpoint=path)
    after = [*seen[1:], load_file(path)]
    for name in ("tuner.context.ctx", "optimizer.0.momentum_buffer"):
        assert not torch.equal(after[0][name], after[1][name])
        assert torch.equal(after[1][name], after[2][name])
        assert not torch.equal(after[2][name], after[3][name])
    assert [each["holder.1.state"].tolist() for each in after] == [
        [2.0**8, 1, 0],
        [2.0**8, 2, 0],
        [2.0**7, 0, 1],
        [2.0**7, 1, 1],
    ]


def test_steps_that_are_left_out_are_counted_and_said(clip, caplog):
    with caplog.at_level(logging.INFO, "vlcal"):
        trained(clip, HALF, Bumpy(1))
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "fit: epoch 0, step 1 left out, the factor on the loss becomes 128"),
        (
            "WARNING",
            "fit: steps left out because float16 could not hold their gradients: 1; "
            "the factor on the loss ended at 128",
        ),
    ]


def test_hooks_run_after_steps_of_the_optimizer_only(clip):
    class Counting(ProDA):
        steps = ()

        def on_step_end(self, progress):
            super().on_step_end(progress)
            self.steps += ((progress.epoch, progress.step),)

    tuner, told = Counting(clip, CLASSES, n_ctx=3, n_prompts=4, prompts_per_step=2), []
    fit(tuner, loader(), HALF, [Bumpy(1, 3)], progress=lambda *at: told.append(at[:2]))
    every = [(epoch, step) for epoch in range(4) for step in range(3)]
    assert told == every
    assert tuner.steps == tuple(at for at in every if at not in ((0, 1), (1, 0)))


def test_gradients_that_are_never_finite_end_the_training(clip):
    tuner = CoOp(clip, CLASSES, ctx_init="a photo of a")
    before = state(tuner)
    recipe = replace(HALF, epochs=20)
    with pytest.raises(TrainingDiverged, match="not finite at epoch 8, step 0, however small"):
        fit(tuner, loader(), recipe, [Bumpy(*range(100))])
    assert torch.equal(state(tuner), before)


def test_resumed_training_keeps_the_factor_and_ends_with_the_same_bits(clip, tmp_path):
    path, whole = tmp_path / "state", trained(clip, HALF, Bumpy(0, 2, 8))

    def interrupt(epoch, step, losses):
        if (epoch, step) == (2, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(clip, HALF, Bumpy(0, 2, 8), checkpoint=path, progress=interrupt)
    resumed = trained(clip, HALF, Bumpy(0, 2, 8), checkpoint=path)
    assert torch.equal(state(resumed[0]), state(whole[0])) and resumed[1] == whole[1]
    assert [row["skipped"] for row in whole[1]] == [2, 0, 1, 0]
    assert load_file(path)["holder.1.state"].tolist() == [2.0**5, 3, 3]


# -- a method that combines two gradients


def test_gradients_are_compared_without_the_factor(clip, monkeypatch):
    seen, compare = [], prograd.aligned

    def watched(own, steering, strength):
        seen.append(torch.stack([own.norm(), steering.norm()]))
        return compare(own, steering, strength)

    monkeypatch.setattr(prograd, "aligned", watched)
    found = []
    for recipe in (HALF, SHORT):
        tuner = ProGrad(clip, CLASSES, n_ctx=4)
        fit(tuner, loader(), replace(recipe, epochs=1), [Bumpy()])
        found.append(state(tuner))
    half, single = torch.stack(seen).chunk(2)
    torch.testing.assert_close(half, single, rtol=0.05, atol=0.05)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_a_method_with_two_losses_leaves_a_step_out(clip):
    runs = []
    for bumps in ((), (0,)):
        tuner = ProGrad(clip, CLASSES, n_ctx=4)
        history = fit(tuner, [next(iter(loader()))], HALF, [Bumpy(*bumps)])
        runs.append([row["skipped"] for row in history])
        assert bool(state(tuner).isfinite().all())
    assert runs == [[0, 0, 0, 0], [1, 0, 0, 0]]


def test_a_device_that_leaves_autocast_off_is_refused(clip, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    with pytest.raises(NotImplementedError, match="precision fp16 is not possible on cpu with"):
        trained(clip)

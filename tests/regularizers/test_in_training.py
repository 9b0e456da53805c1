"""Regularizers in the loop: seeds, resumption, refusals, and hooks that are enough for ZS-Norm."""

import os
import signal
from dataclasses import dataclass, replace

import pytest
import torch

from vlcal.regularizers import DOR, REGULARIZERS, Knowledge, Regularizer, make
from vlcal.regularizers.base import zero_shot_features
from vlcal.training import fit, setup_of
from vlcal.tuners import TUNERS, VPT, CoCoOp, CoOp, FeatureBatches, MaPLe, Recipe, Tuner
from vlcal.types import Batch, ClassSet, Outputs

from .conftest import BASE, WORDS

SHORT = Recipe(epochs=3, lr=0.05, batch_size=4)


def loader():
    noise = torch.Generator().manual_seed(2)
    features = torch.nn.functional.normalize(torch.randn(10, 16, generator=noise), dim=-1)
    return FeatureBatches(features, torch.arange(10) % 4, 4)


def state(tuner):
    return torch.cat([p.detach().flatten() for p in tuner.parameters()])


def trained(clip, *regularizers, **options):
    tuner = CoOp(clip, BASE, n_ctx=4)
    return tuner, fit(tuner, loader(), SHORT, regularizers, **options)


def dor(**options):
    # 4 words a step out of 11, 9 steps: passes end inside epochs
    return DOR(**({"vocabulary": WORDS, "top_k": 11} | options))


# -- DOR


def test_dor_trains_another_prompt_and_is_reported(clip):
    tuner, history = trained(clip, dor())
    assert set(history[0]) == {"epoch", "rate", "cross_entropy", "dor"}
    assert not torch.equal(state(tuner), state(trained(clip)[0]))


def test_dor_keeps_words_nearer_to_their_zero_shot_features(clip):
    def moved(*regularizers):
        tuner = CoOp(clip, BASE, ctx_init="a photo of a")
        fit(tuner, loader(), Recipe(epochs=10, lr=0.05), regularizers)
        frozen = clip.encode_text(ClassSet(tuple(WORDS), "a photo of a {}.").prompts())
        return float((tuner.encode_text(WORDS).detach() * frozen).sum(-1).mean())

    assert moved(dor(weight=20)) > moved() + 0.01


def test_weight_zero_changes_nothing(clip):
    assert torch.equal(state(trained(clip, dor(weight=0))[0]), state(trained(clip)[0]))


def test_seed_decides_everything(clip):
    runs = [trained(clip, dor(rank="random"), seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(state(runs[0][0]), state(runs[1][0])) and runs[0][1] == runs[1][1]
    assert not torch.equal(state(runs[0][0]), state(runs[2][0]))


def test_one_regularizer_serves_two_trainings_alike(clip):
    one = dor()
    assert torch.equal(state(trained(clip, one)[0]), state(trained(clip, one)[0]))


@pytest.mark.parametrize("options", [{}, {"sampling": "independent"}, {"rank": "random"}], ids=str)
def test_resumed_training_ends_with_the_same_bits(clip, tmp_path, options):
    def interrupt(epoch, step, losses):
        if (epoch, step) == (1, 2):
            os.kill(os.getpid(), signal.SIGINT)

    whole, history = trained(clip, dor(**options), seed=3)
    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        trained(clip, dor(**options), seed=3, checkpoint=path, progress=interrupt)
    resumed, again = trained(clip, dor(**options), seed=3, checkpoint=path)
    assert torch.equal(state(resumed), state(whole)) and again == history


def test_checkpoint_of_another_weight_is_refused(clip, tmp_path):
    trained(clip, dor(), checkpoint=tmp_path / "state")
    with pytest.raises(ValueError, match="belongs to another run: regularizers was"):
        trained(clip, dor(weight=2.0), checkpoint=tmp_path / "state")


def test_a_tuner_without_open_vocabulary_is_refused_before_the_first_step(clip):
    class Fixed(Tuner):
        name = "fixed"

        def __init__(self, clip, classes):
            super().__init__(clip, classes)
            self.residual = torch.nn.Parameter(torch.zeros(len(classes), 16))

    seen = []
    with pytest.raises(NotImplementedError, match="fixed: has no open vocabulary"):
        fit(Fixed(clip, BASE), loader(), SHORT, [dor()], progress=lambda *at: seen.append(at))
    assert seen == []


@pytest.mark.parametrize("cls", TUNERS, ids=lambda cls: cls.name)
def test_every_tuner_takes_dor_or_says_why_not(clip, cls):
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    batch = Batch(images, torch.arange(4), torch.arange(4))
    tuner, seen = cls(clip, BASE), []
    recipe = replace(cls.recipe, epochs=2, lr=1e-3)
    try:
        dor().check(setup_of(tuner))
    except NotImplementedError as error:
        assert "not learned" in str(error) and cls.name in ("zero_shot", "vpt")
        return
    term = dor(template="a bad drawing of some {}.")
    fit(tuner, [batch], recipe, [term], progress=lambda *at: seen.append(at[2]["dor"]))
    assert len(seen) == 2 and all(0 < value < 16 for value in seen)


def test_words_are_read_under_the_context_of_the_image(clip):
    tuner = CoCoOp(clip, BASE).train()
    images = torch.nn.functional.normalize(torch.randn(2, 16), dim=-1)
    with torch.no_grad():
        tuner.meta_net.expand.bias.normal_()
    term = dor()
    term.prepare(setup_of(tuner))
    out = tuner(images)
    features = tuner.step_encoder(out)(BASE.names)
    logits = clip.logit_scale * images[1] @ features.T
    torch.testing.assert_close(logits, out.logits[1], rtol=0, atol=1e-4)
    term.penalty(out, tuner.step_encoder(out)).backward()
    assert bool(tuner.context.ctx.grad.any()) and bool(tuner.meta_net.expand.bias.grad.any())


# -- knowledge


def test_knowledge_of_a_hand_made_case():
    # cosines 1 and 0.6: 8 * (1 - 0.8)
    term = Knowledge()
    term.zero_shot_ = torch.tensor([[1.0, 0], [0, 1.0]], dtype=torch.float64)
    tuned = torch.tensor([[1.0, 0], [0.8, 0.6]], dtype=torch.float64)
    out = Outputs(torch.zeros(1, 2), torch.zeros(1, 2), tuned)
    assert float(term.penalty(out, lambda words: tuned)) == pytest.approx(1.6, abs=1e-14)


@pytest.mark.parametrize("cls", TUNERS, ids=lambda cls: cls.name)
def test_knowledge_refuses_tuners_that_learn_no_text(clip, cls):
    setup = setup_of(cls(clip, BASE))
    if cls.name not in ("zero_shot", "vpt"):
        Knowledge().check(setup)
        return
    with pytest.raises(NotImplementedError, match="knowledge: the text features are not learned"):
        Knowledge().prepare(setup)


def test_knowledge_takes_a_context_for_each_class(clip):
    tuner = CoOp(clip, BASE, n_ctx=4, class_specific=True)
    history = fit(tuner, loader(), SHORT, [Knowledge()])
    assert history[-1]["knowledge"] > 0


def test_knowledge_starts_at_zero_where_prompt_and_template_agree(clip, setup):
    term = Knowledge()
    term.prepare(setup)
    tuner = CoOp(clip, BASE, ctx_init="a photo of a")
    out = Outputs(torch.zeros(1, 4), torch.zeros(1, 16), tuner.class_features())
    assert abs(float(term.penalty(out, tuner.encode_text).detach())) < 1e-5
    other = Knowledge(template="no drawing: {}")
    other.prepare(setup)
    assert float(other.penalty(out, tuner.encode_text).detach()) > 0.01


def test_knowledge_keeps_class_features_nearer(clip):
    def moved(*regularizers):
        tuner = CoOp(clip, BASE, ctx_init="a photo of a")
        fit(tuner, loader(), Recipe(epochs=10, lr=0.05), regularizers)
        near = tuner.text_features().detach() * clip.encode_text(BASE.prompts())
        return float(near.sum(-1).mean())

    assert moved(Knowledge(weight=20)) > moved() + 0.01


# -- the hooks are enough for methods that rescale or bound logits


@dataclass(eq=False)
class ZeroShotRange(Regularizer):
    """Logits of a step moved to the range of the zero-shot logits, row by row."""

    name = "range"

    def prepare(self, setup):
        self.scale = setup.clip.logit_scale
        self.frozen = zero_shot_features(setup.clip, setup.classes)

    def logits(self, out):
        t, z = out.logits, self.scale * out.image_features @ self.frozen.T
        low, high = t.amin(1, keepdim=True), t.amax(1, keepdim=True)
        least, most = z.amin(1, keepdim=True), z.amax(1, keepdim=True)
        return (t - low) / (high - low) * (most - least) + least


def test_a_rescaling_of_logits_reaches_the_loss_and_not_the_prediction(clip):
    tuner, history = trained(clip, ZeroShotRange())
    plain, other = trained(clip)
    assert history[0]["cross_entropy"] != other[0]["cross_entropy"]
    assert not torch.equal(state(tuner), state(plain))
    x = next(iter(loader())).images
    expected = clip.logit_scale * x @ tuner.text_features().T
    torch.testing.assert_close(tuner.predict(x).logits, expected)


class ZeroShotLogits(ZeroShotRange):
    """The same from the frozen model's image features, for tuners that change these."""

    def prepare(self, setup):
        super().prepare(setup)
        self.images, self.seen = setup.frozen_images, []

    def logits(self, out):
        frozen = self.images()
        assert self.images() is frozen
        self.seen.append(frozen)
        return super().logits(out._replace(image_features=frozen))


@pytest.mark.parametrize("cls", TUNERS[1:], ids=lambda cls: cls.name)
def test_frozen_image_features_are_those_of_the_steps_images(clip, cls):
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    batch, term = Batch(images, torch.arange(4), torch.arange(4)), ZeroShotLogits()
    fit(cls(clip, BASE), [batch], Recipe(epochs=2, lr=1e-3), [term])
    assert len(term.seen) == 2 and not any(seen.requires_grad for seen in term.seen)
    with torch.no_grad():
        for seen in term.seen:
            torch.testing.assert_close(seen, clip.encode_image(images))
    with pytest.raises(RuntimeError, match="only while a training step runs"):
        term.images()


@pytest.mark.parametrize("cls", [MaPLe, VPT], ids=lambda cls: cls.name)
def test_images_are_encoded_frozen_once_a_step_and_only_if_asked_for(clip, cls, monkeypatch):
    calls, encode = [], type(clip).encode_image
    monkeypatch.setattr(
        type(clip), "encode_image", lambda self, images: calls.append(1) or encode(self, images)
    )
    batch = Batch(torch.randn(4, 3, 16, 16), torch.arange(4), torch.arange(4))
    fit(cls(clip, BASE), [batch], Recipe(epochs=2), [Regularizer()])
    assert calls == []
    fit(cls(clip, BASE), [batch], Recipe(epochs=2), [ZeroShotLogits(), ZeroShotLogits()])
    assert len(calls) == 2


# -- by name


def test_published_weight_depends_on_the_tuner():
    assert make("dor", {}, tuner="coop").weight == 8
    assert make("dor", {}, tuner="maple").weight == 2
    assert make("dor", {"weight": 5}, tuner="coop").weight == 5


def test_names_of_new_classes_reach_those_who_ask():
    assert make("dor", {"exclude_new": True}, tuner="coop", new_names=["fox"]).new_names == ("fox",)
    assert make("knowledge", {}, tuner="coop", new_names=["fox"]).weight == 8


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dorr", {}, "regularizer: unknown name 'dorr'; known: dor, knowledge"),
        ("vlcal.types:Batch", {}, "is not a Regularizer"),
        ("dor", {"topk": 5}, "dor: unknown option 'topk'; known: vocabulary, top_k, per_step"),
        ("knowledge", {"top_k": 5}, "knowledge: unknown option 'top_k'; known: weight, template"),
    ],
)
def test_unknown_names_list_the_known_ones(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, options, tuner="coop")


@pytest.mark.parametrize("cls", REGULARIZERS, ids=lambda cls: cls.name)
def test_identity_holds_the_arguments_that_make_the_same_again(cls):
    identity = cls().identity()
    assert identity["name"] == cls.name
    assert {"weight", "template"} <= set(identity)

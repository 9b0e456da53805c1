"""The three distances and the average over epochs of PromptSRC."""

import pytest
import torch

from vlcal.clip import unit
from vlcal.training import fit
from vlcal.tuners import ProDA, PromptSRC, Recipe, ZeroShot, encode_views
from vlcal.tuners.promptsrc import divergence, epoch_weights
from vlcal.tuners.templates import IMAGENET_60, IMAGENET_80
from vlcal.types import Batch, ClassSet

TWO = ["a photo of a {}.", "art of the {}."]


def test_epoch_weights_are_the_published_ones():
    upstream = epoch_weights(20, 15, 1)
    assert float(upstream[14]) == pytest.approx(0.399, abs=5e-4)
    assert float(upstream.sum()) == pytest.approx(1, abs=1e-12)
    density = torch.distributions.Normal(15.0, 1.0).log_prob(torch.arange(1.0, 21.0)).exp()
    torch.testing.assert_close(upstream.float(), density / density.sum())
    flat = epoch_weights(50, 30, 30)
    assert float(flat.max()) == pytest.approx(0.023, abs=5e-4) and int(flat.argmax()) == 29
    assert float(flat.max() / flat.min()) < 1.7


def test_weights_far_from_the_mean_still_sum_to_one():
    far = epoch_weights(2, 500, 1)
    assert torch.isfinite(far).all() and float(far.sum()) == pytest.approx(1)
    torch.testing.assert_close(epoch_weights(4, 2, float("inf")), torch.full((4,), 0.25).double())


def test_last_epoch_becomes_the_weighted_mean(exact, base):
    tuner = PromptSRC(exact, base, templates=TWO, mean=2.0, std=1.0).double()
    # densities exp(-1/2), 1, exp(-1/2) at epochs 1, 2, 3; the values are 1, 2 and 4 everywhere
    for epoch, value in enumerate((1.0, 2.0, 4.0)):
        with torch.no_grad():
            for parameter in tuner.parameters():
                parameter.fill_(value)
        tuner.on_epoch_end(epoch, 3)
        kept = {float(p.detach().mean()) for p in tuner.parameters()}
        assert len(kept) == 1 and (epoch == 2 or kept == {value})
    side = 0.6065306597126334
    assert kept.pop() == pytest.approx((5 * side + 2) / (1 + 2 * side), rel=1e-12)


def test_divergence_of_a_small_case():
    target, logits = torch.zeros(1, 2).double(), torch.tensor([[0.0, 3.0]]).double().log()
    logits[0, 0] = 0.0  # beliefs 1/4, 3/4 against 1/2, 1/2
    expected = (0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()) / 2
    assert float(divergence(target, logits)) == pytest.approx(float(expected), rel=1e-6)
    assert float(divergence(logits, logits)) == 0


def test_terms_are_the_papers(exact, base, images, labels):
    tuner = PromptSRC(exact, base, templates=TWO, weight_logits=0.7).double()
    out = tuner(images)
    losses = tuner.losses(out, labels)
    raw = []
    for template in TWO:
        tokens = exact.text.tokenize(ClassSet(base.names, template).prompts())
        raw.append(exact.text.encode(exact.text.embed(tokens), exact.text.end(tokens)))
    words, frozen = unit(torch.stack(raw).mean(0)), exact.encode_image(images)
    zero_shot = (exact.logit_scale * frozen @ words.T).softmax(-1)
    kl = (zero_shot * (zero_shot.log() - out.logits.log_softmax(-1))).sum() / (6 * 4)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(
        losses["text"], 25 * (out.text_features - words).abs().mean(), **close
    )
    torch.testing.assert_close(
        losses["image"], 10 * (out.image_features - frozen).abs().mean(), **close
    )
    torch.testing.assert_close(losses["logits"], 0.7 * kl, **close)
    assert set(losses) == {"cross_entropy", "text", "image", "logits"}


def test_one_template_pulls_towards_zero_shot(clip, base, images, labels):
    tuner = PromptSRC(clip, base, templates=[base.template])
    torch.testing.assert_close(tuner.target(base.names), ZeroShot(clip, base).text_features())


def test_sixty_and_eighty_templates_are_different_prompts():
    assert len(set(IMAGENET_80)) == 80 and len(set(IMAGENET_60)) == 60
    assert {t.count("{}") for t in IMAGENET_80} == {1}
    assert "a photo of a {}." in IMAGENET_60 and "a tattoo of the {}." not in IMAGENET_60


class Stop(Exception):
    """Ends a training from outside."""


@pytest.mark.parametrize(
    ("cls", "options"),
    [(PromptSRC, {"templates": TWO, "mean": 2.0}), (ProDA, {"n_ctx": 3, "n_prompts": 8})],
)
def test_interrupted_training_ends_with_the_same_bits(
    clip, base, images, labels, cls, options, tmp_path
):
    batches = [
        Batch(images[i : i + 2], labels[i : i + 2], torch.arange(i, i + 2)) for i in (0, 2, 4)
    ]
    recipe = Recipe(epochs=4, lr=0.01, batch_size=2)
    whole, halves = cls(clip, base, **options), cls(clip, base, **options)
    fit(whole, batches, recipe)

    def stop(epoch, step, losses):
        if (epoch, step) == (2, 1):
            raise Stop

    file = tmp_path / "unfinished.safetensors"
    with pytest.raises(Stop):
        fit(halves, batches, recipe, progress=stop, checkpoint=file)
    again = cls(clip, base, **options)
    fit(again, batches, recipe, checkpoint=file)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_stored_features_are_refused(clip, base, images, labels):
    batches = [Batch(images, labels, torch.arange(6))]
    features, _ = encode_views(clip, batches)
    with pytest.raises(ValueError, match="promptsrc: needs images, got features"):
        fit(PromptSRC(clip, base, templates=TWO), [batches[0]._replace(images=features[0])])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": "imagenet7"}, "one of imagenet80, imagenet60, got 'imagenet7'"),
        ({"templates": []}, "templates must be a list of prompts"),
        ({"std": 0.0}, "std must be positive, got 0.0"),
        ({"prompt_depth": 3}, r"promptsrc: prompt_depth must be in 1\.\.2 \(the blocks"),
    ],
)
def test_refuses_with_a_reason(clip, base, options, message):
    with pytest.raises(ValueError, match=message):
        PromptSRC(clip, base, **options)

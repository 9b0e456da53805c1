"""Every image reads the classes under its own context."""

import torch

from vlcal.clip import unit
from vlcal.tuners import CoCoOp, CoOp, ZeroShot
from vlcal.tuners.cocoop import MetaNet


def moved(clip, base):
    tuner = CoCoOp(clip, base, seed=2).to(clip.dtype)
    with torch.no_grad():
        for parameter in tuner.meta_net.parameters():
            parameter.mul_(3)
    return tuner


def test_logits_and_gradients_are_those_of_one_pass_per_image(exact, base, images, labels):
    tuner = moved(exact, base)
    out = tuner(images)
    rows = []
    for f in exact.encode_image(images):
        single = CoOp(exact, base, n_ctx=4).double()
        hidden = tuner.meta_net.squeeze(f).relu()
        del single.context._parameters["ctx"]
        single.context.ctx = tuner.context.ctx + tuner.meta_net.expand(hidden)
        rows.append(tuner.logit_scale * f @ single.class_features().T)
    expected = torch.stack(rows)
    torch.testing.assert_close(out.logits, expected, rtol=1e-10, atol=1e-10)
    learned = list(tuner.parameters())
    ours = torch.autograd.grad(tuner.losses(out, labels)["cross_entropy"], learned)
    loss = torch.nn.functional.cross_entropy(expected, labels)
    for found, wanted in zip(ours, torch.autograd.grad(loss, learned), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


@torch.no_grad()
def test_reported_text_features_do_not_depend_on_the_images(exact, base, images):
    tuner = moved(exact, base).eval()
    first, second = tuner(images[:2]), tuner(images[2:])
    assert torch.equal(first.text_features, second.text_features)
    context = CoOp(exact, base, ctx_init="a photo of a").double()
    torch.testing.assert_close(first.text_features, context.class_features())


def test_training_reports_the_mean_over_the_batch(exact, base, images):
    tuner = moved(exact, base)
    features = tuner._conditioned(exact.encode_image(images))
    torch.testing.assert_close(tuner(images).text_features, unit(features.mean(0)))


@torch.no_grad()
def test_without_a_shift_it_is_zero_shot(clip, base, images):
    tuner = CoCoOp(clip, base).eval()
    tuner.meta_net.expand.weight.zero_()
    tuner.meta_net.expand.bias.zero_()
    torch.testing.assert_close(tuner(images), ZeroShot(clip, base)(images), rtol=0, atol=5e-5)


def test_network_is_one_sixteenth_wide_and_seeded():
    first, second, other = MetaNet(64, 32, 0), MetaNet(64, 32, 0), MetaNet(64, 32, 1)
    assert first.squeeze.weight.shape == (4, 64) and first.expand.weight.shape == (32, 4)
    assert torch.equal(first.expand.bias, second.expand.bias)
    assert not torch.equal(first.expand.bias, other.expand.bias)
    assert float(first.squeeze.weight.detach().abs().max()) <= 1 / 8

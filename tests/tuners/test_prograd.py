"""The projection of ProGrad, and where its context starts."""

import pytest
import torch
import torch.nn.functional as F

from vlcal.tuners import ProGrad, ZeroShot
from vlcal.tuners.prograd import aligned, leading_words, soft_cross_entropy
from vlcal.types import ClassSet


@pytest.mark.parametrize(
    ("own", "steering", "strength", "expected"),
    [
        ((-1.0, 2.0), (3.0, 0.0), 1.0, (0.0, 2.0)),
        ((-1.0, 2.0), (3.0, 0.0), 0.5, (-0.5, 2.0)),
        ((-2.0, 1.0), (1.0, 1.0), 1.0, (-1.5, 1.5)),
        ((1.0, 2.0), (3.0, 0.0), 1.0, (1.0, 2.0)),
        ((0.0, 2.0), (3.0, 0.0), 1.0, (0.0, 2.0)),
        ((-1.0, 2.0), (0.0, 0.0), 1.0, (-1.0, 2.0)),
        ((-1.0, 2.0), (-5.0, 10.0), 1.0, (-1.0, 2.0)),
    ],
)
def test_only_the_conflicting_part_is_removed(own, steering, strength, expected):
    own, steering = torch.tensor(own).double(), torch.tensor(steering).double()
    found = aligned(own, steering, strength)
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=1e-15)


def test_what_is_left_is_orthogonal_to_what_objects():
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    steering = -own + torch.randn(4, 8, generator=generator, dtype=torch.float64)
    found = aligned(own, steering)
    assert float((own * steering).sum()) < 0
    assert float((found * steering).sum()) == pytest.approx(0, abs=1e-12)


def test_zero_shot_loss_of_a_small_case():
    student, teacher = torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[0.0, 3.0]]).double()
    found = soft_cross_entropy(student, teacher, 2.0)
    assert float(found) == pytest.approx(4 * 0.6931471805599453)


@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_gradient_is_that_of_the_papers_loop(exact, base, images, labels, strength):
    tuner = ProGrad(exact, base, n_ctx=6, strength=strength).double()
    extra = tuner.context.ctx.square().sum() * 0  # a regularizer's term joins the first loss
    tuner.backward({**tuner.losses(tuner(images), labels), "extra": extra})

    ctx = tuner.context.ctx
    out = tuner(images)
    teacher = ZeroShot(exact, base)(images).logits.softmax(-1)
    own = torch.autograd.grad(F.cross_entropy(out.logits, labels), ctx, retain_graph=True)[0]
    kl = -(teacher * out.logits.log_softmax(-1)).sum(-1).mean()
    steering = torch.autograd.grad(kl, ctx)[0]
    unit = steering / steering.norm()
    dot = float((own * unit).sum())
    expected = own - strength * dot * unit if dot < 0 else own
    torch.testing.assert_close(ctx.grad, expected, rtol=1e-9, atol=1e-12)


def test_phrase_stands_right_and_zeros_in_front(clip):
    tuner = ProGrad(clip, ClassSet(("cat",), "a sketch of the {}."), n_ctx=6)
    phrase = clip.text.embed(clip.text.tokenize(["a sketch of the"]))[0, 1:5]
    assert torch.equal(tuner.context.ctx[2:], phrase)
    assert not tuner.context.ctx[:2].any()


def test_phrase_without_room_to_spare_is_zero_shot(clip, base, images):
    tuner = ProGrad(clip, base, n_ctx=4)
    torch.testing.assert_close(
        tuner(images).logits, ZeroShot(clip, base)(images).logits, rtol=0, atol=5e-5
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a type of pet, a photo of a {}.", "a type of pet, a photo of a"),
        ("a centered satellite photo of {}", "a centered satellite photo of"),
        ("a photo of a {}, a type of pet.", "a photo of a"),
        ("{}.", "a photo of a"),
    ],
)
def test_start_follows_templates_that_end_with_the_name(template, words):
    assert leading_words(template) == words


def test_refuses_a_phrase_that_does_not_fit(clip, base):
    with pytest.raises(ValueError, match="n_ctx must hold the 4 tokens of 'a photo of a', got 3"):
        ProGrad(clip, base, n_ctx=3)

"""The consistency term of KgCoOp."""

import pytest
import torch

from vlcal.tuners import KgCoOp, ZeroShot
from vlcal.types import ClassSet


def test_term_starts_at_zero_where_phrase_and_template_agree(exact, base, images, labels):
    losses = KgCoOp(exact, base).double().losses(KgCoOp(exact, base).double()(images), labels)
    assert list(losses) == ["cross_entropy", "consistency"]
    assert float(losses["consistency"].detach()) == pytest.approx(0, abs=1e-12)


def test_term_is_half_the_weighted_mean_squared_distance(exact, base, images, labels):
    template = "a sketch of the {}."
    tuner = KgCoOp(exact, base, weight=3.0, template=template, n_ctx=5, ctx_init=None).double()
    out = tuner(images)
    target = ZeroShot(exact, ClassSet(base.names, template)).text_features()
    expected = 1.5 * (out.text_features - target).square().sum(-1).mean()
    torch.testing.assert_close(
        tuner.losses(out, labels)["consistency"], expected, rtol=1e-10, atol=0
    )


def test_target_follows_the_classes(clip, base, images):
    tuner = KgCoOp(clip, base)
    tuner.losses(tuner(images), torch.zeros(6, dtype=torch.int64))
    tuner.set_classes(ClassSet(("house", "moth")))
    losses = tuner.losses(tuner(images), torch.zeros(6, dtype=torch.int64))
    assert float(losses["consistency"].detach()) == pytest.approx(0, abs=1e-5)

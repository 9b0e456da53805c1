"""The view on an open_clip model: unit features, frozen weights, a fingerprint."""

import pytest
import torch
import torch.nn.functional as F

from vlcal.clip import CLIP, tiny_clip


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(0)


@pytest.fixture
def images():
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_features_are_unit_float32(clip, images):
    for features in (clip.encode_image(images), clip.encode_text(["a cat", "two dogs"])):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))


def test_features_are_those_of_open_clip(clip, images):
    expected = F.normalize(clip.model.encode_image(images), dim=-1)
    torch.testing.assert_close(clip.encode_image(images), expected, rtol=0, atol=0)
    tokens = clip.text.tokenize(["a cat", "two dogs"])
    torch.testing.assert_close(
        clip.encode_text(["a cat", "two dogs"]), clip.model.encode_text(tokens, normalize=True)
    )


def test_different_inputs_get_clearly_different_features(clip, images):
    for features in (
        clip.encode_image(images),
        clip.encode_text(["a cat.", "a dog.", "a big car."]),
    ):
        cosine = features @ features.T
        assert float((cosine - torch.eye(len(cosine))).max()) < 0.99


def test_weights_are_viewed_frozen_and_in_evaluation_mode():
    clip = tiny_clip(0)
    again = CLIP(clip.model, clip.text.tokenizer, clip.preprocess, name="again", config=clip.config)
    assert again.model.visual.proj is clip.model.visual.proj
    assert not any(p.requires_grad for p in again.parameters())
    assert not again.train().model.training


def test_fingerprint_follows_weights_and_configuration():
    first, second, other = tiny_clip(0), tiny_clip(0), tiny_clip(1)
    assert first.fingerprint() == second.fingerprint() != other.fingerprint()
    with torch.no_grad():
        first.model.ln_final.bias[3] += 1e-3
    assert first.fingerprint() != second.fingerprint()
    moved = CLIP(
        second.model,
        second.text.tokenizer,
        second.preprocess,
        name="tiny",
        config=second.config | {"quick_gelu": True},
    )
    assert moved.fingerprint() != second.fingerprint()


def test_tiny_clip_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    tiny_clip(3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 1, 16, 16), (2, 3, 32, 32)])
def test_refuses_images_of_another_shape(clip, shape):
    with pytest.raises(ValueError, match=r"images must be \[B, 3, 16, 16\]"):
        clip.encode_image(torch.zeros(shape))


def test_logit_scale_is_the_factor_itself(clip):
    assert clip.logit_scale == pytest.approx(1 / 0.07)

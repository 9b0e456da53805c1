"""Prompts in both towers: what MaPLe couples, what stays fixed, where visual prompts go."""

import pytest
import torch

from vlcal.clip import unit
from vlcal.tuners import IVLP, VPT, MaPLe, ZeroShot
from vlcal.types import ClassSet


@torch.no_grad()
def test_visual_prompts_are_maps_of_the_text_prompts(exact, base, images):
    tuner = MaPLe(exact, base).double()
    first, deep = tuner.visual()
    torch.testing.assert_close(first, tuner.couplings[0](tuner.context.ctx))
    assert deep.shape == (1, 2, 32)
    torch.testing.assert_close(deep[0], tuner.couplings[1](tuner.context.deep()[0]))
    expected = unit(exact.image.encode(images, first, deep))
    torch.testing.assert_close(tuner(images).image_features, expected)


def test_later_maps_begin_as_copies_and_the_first_does_not(clip, base, monkeypatch):
    monkeypatch.setattr(type(clip.text), "layers", 4)
    monkeypatch.setattr(type(clip.image), "layers", 4)
    maps = [layer.weight for layer in MaPLe(clip, base, prompt_depth=4).couplings]
    assert len(maps) == 4 and not torch.equal(maps[0], maps[1])
    assert torch.equal(maps[1], maps[2]) and torch.equal(maps[2], maps[3])
    assert len({id(weight) for weight in maps}) == 4


@torch.no_grad()
@pytest.mark.parametrize("cls", [MaPLe, IVLP])
def test_words_behind_the_context_stay_fixed(clip, base, cls):
    tuner = cls(clip, base, n_ctx=2, ctx_init="a photo of a", prompt_depth=1)
    assert tuner.fixed == "of a" and tuner.context.n_ctx == 2
    tuner.context.ctx.copy_(clip.text.embed(clip.text.tokenize(["one sketch"]))[0, 1:3])
    expected = ZeroShot(clip, ClassSet(base.names, "one sketch of a {}.")).text_features()
    torch.testing.assert_close(tuner.eval().text_features(), expected)


@torch.no_grad()
@pytest.mark.parametrize("cls", [MaPLe, IVLP])
def test_deep_text_prompts_replace_the_context_in_the_second_block(exact, base, cls):
    tuner = cls(exact, base).double()
    tower = exact.text
    tokens = tower.tokenize([f"x x of a {name.replace('_', ' ')}." for name in base.names])
    x = tower.embed(tokens).clone()
    x[:, 1:3] = tuner.context.ctx
    x = x + tower.source.positional_embedding
    mask = tower.source.attn_mask.double()
    first, second = tower.source.transformer.resblocks
    x = first(x, attn_mask=mask)
    x[:, 1:3] = tuner.context.deep()[0]
    x = tower.source.ln_final(second(x, attn_mask=mask))
    expected = x[torch.arange(4), tower.end(tokens)] @ tower.source.text_projection
    torch.testing.assert_close(tuner.class_features(), unit(expected), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_nothing_drawn_repeats(clip, base):
    tuner = IVLP(clip, base, n_ctx=3, n_ctx_vision=3, ctx_init=None)
    first, deep = tuner.visual()
    drawn = [tuner.context.ctx, tuner.context.deep()[0], first, deep[0]]
    for i, one in enumerate(drawn):
        assert float(one.std()) == pytest.approx(0.02, rel=0.3)
        assert all(not torch.equal(one, other) for other in drawn[:i])
    other = IVLP(clip, base, n_ctx=3, n_ctx_vision=3, ctx_init=None, seed=1)
    assert not torch.equal(other.context.ctx, drawn[0])
    assert not torch.equal(other.vision.first, first)


@torch.no_grad()
def test_vpt_leaves_the_words_alone(clip, base, images):
    tuner = VPT(clip, ClassSet(base.names, "a sketch of a {}."))
    words = ZeroShot(clip, base)
    torch.testing.assert_close(tuner.text_features(), words.text_features())
    own = VPT(clip, ClassSet(base.names, "a sketch of a {}."), template=None)
    assert not torch.allclose(own.text_features(), words.text_features(), atol=1e-3)
    first, deep = tuner.vision()
    assert first.shape == (8, 32) and deep.shape == (1, 8, 32)
    expected = unit(clip.image.encode(images, first, deep))
    torch.testing.assert_close(tuner(images).image_features, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c, b: MaPLe(c, b, prompt_depth=9), r"prompt_depth must be in 1\.\.2 .*got 9"),
        (lambda c, b: MaPLe(c, b, n_ctx=5), r"maple: n_ctx must be in 1\.\.4 \(the tokens of"),
        (lambda c, b: IVLP(c, b, prompt_depth_vision=0), r"ivlp: prompt_depth_vision must be in 1"),
        (lambda c, b: IVLP(c, b, n_ctx_vision=0), "VisualPrompts: n_ctx must be at least 1"),
        (lambda c, b: IVLP(c, b, ctx_init="sansevierias stand", n_ctx=2), "one token per word"),
        (lambda c, b: VPT(c, b, prompt_depth_vision=3), r"vpt: prompt_depth_vision must be in 1"),
        (lambda c, b: MaPLe(c, b).encode_text("fox"), "list of strings, got one string"),
    ],
)
def test_refuses_with_a_reason(clip, base, make, message):
    with pytest.raises(ValueError, match=message):
        make(clip, base)

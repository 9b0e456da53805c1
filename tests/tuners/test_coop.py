"""Where CoOp's context stands, what it starts from, and who owns it."""

import pytest
import torch

from vlcal.tuners import RECIPES, CoOp, Recipe, ZeroShot
from vlcal.tuners.prompts import interleave
from vlcal.types import ClassSet

BASE = ClassSet(("cat", "big_heavy airplane", "dog", "tree"))
NEW = ClassSet(("house", "three toed sloth", "moth"))


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (3, [[0, 5, 6, 7, 1, 2, 3, 4], [0, 5, 6, 7, 1, 2, 3, 4]]),
        (1, [[0, 5, 1, 2, 6, 7, 3, 4], [0, 5, 1, 6, 7, 2, 3, 4]]),
        (0, [[0, 1, 2, 5, 6, 7, 3, 4], [0, 1, 5, 6, 7, 2, 3, 4]]),
    ],
)
def test_context_goes_around_the_name(before, expected):
    # five tokens (start, names of two and one token, rest) and three context vectors 5, 6, 7
    assert interleave(torch.tensor([2, 1]), 8, 3, before).tolist() == expected


@pytest.mark.parametrize(
    ("position", "template"),
    [("end", "a photo of a {}."), ("middle", "a photo {} of a."), ("front", "{} a photo of a.")],
)
@torch.no_grad()
def test_phrase_as_context_reads_like_the_text(clip, position, template):
    coop = CoOp(clip, BASE, ctx_init="a photo of a", class_token_position=position)
    zero_shot = ZeroShot(clip, ClassSet(BASE.names, template))
    torch.testing.assert_close(coop.class_features(), zero_shot.class_features())


@torch.no_grad()
def test_class_specific_contexts_stay_with_their_classes(clip):
    shared = CoOp(clip, BASE, n_ctx=4)
    own = CoOp(clip, BASE, n_ctx=4, class_specific=True)
    own.context.ctx.copy_(shared.context.ctx.expand(4, -1, -1))
    torch.testing.assert_close(own.class_features(), shared.class_features())
    own.context.ctx[2] += torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    moved = (own.class_features() - shared.class_features()).abs().amax(1) > 1e-4
    assert moved.tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match="class-specific context belongs to its 4 training"):
        own.set_classes(NEW)
    with pytest.raises(ValueError, match="cannot serve other words"):
        own.encode_text(["fox"])


def test_published_recipes_are_data():
    upstream, dac = RECIPES["coop"]["upstream"], RECIPES["coop"]["dac2024"]
    assert upstream.arguments == {"n_ctx": 4, "ctx_init": "a photo of a"}
    assert dac.arguments == {"n_ctx": 16, "ctx_init": None}
    assert upstream.recipe == dac.recipe == Recipe(200, 0.002, 32, 0.9, 5e-4, 1, 1e-5, "fp32")


@pytest.mark.parametrize("name", ["dac2024", "upstream"])
def test_published_recipes_build_a_tuner(clip, name):
    setting = RECIPES["coop"][name]
    tuner = CoOp(clip, BASE, **setting.arguments)
    assert tuner.context.ctx.shape == (setting.arguments["n_ctx"], 32)


def test_random_context_has_the_papers_deviation(clip):
    wide = torch.cat([CoOp(clip, BASE, seed=seed).context.ctx.detach() for seed in range(20)])
    assert float(wide.std()) == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(wide[:16], wide[16:32])

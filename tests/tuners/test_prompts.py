"""Context tokens: shifts of single images, per-layer prompts, and what falls back."""

import logging

import pytest
import torch

from vlcal.clip import TextTower, tiny_clip
from vlcal.tuners import CoOp, KgCoOp, ProDA, prompts
from vlcal.tuners.prompts import ContextTokens, DeepPrompts
from vlcal.types import ClassSet

BASE = ClassSet(("cat", "dog"))
NAMES = ["cat", "big heavy airplane", "st. bernard"]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(scope="module")
def tower():
    return tiny_clip(0).double().text


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def deep_prompts(n_ctx=4, seed=2):
    return DeepPrompts(2, n_ctx, 32, torch.Generator().manual_seed(seed))


def context(tower, ctx, **options):
    return ContextTokens(tower, ctx, **options).double()


@pytest.mark.parametrize("position", ["end", "middle"])
@pytest.mark.parametrize("shape", [(2, 32), (2, 4, 32)])
def test_a_shift_moves_the_context_of_each_image(tower, position, shape):
    ctx, shift = draw(4, 32).float().double(), draw(*shape, seed=1).float().double()
    tokens = context(tower, ctx, position=position)
    found = tokens(tokens.tokenize(NAMES), shift)
    moved = [ctx + one for one in (shift[:, None] if shift.ndim == 2 else shift)]
    for got, one in zip(found, moved, strict=True):
        alone = context(tower, ctx, position=position)
        alone.ctx.data = one
        torch.testing.assert_close(got, alone(alone.tokenize(NAMES)), **EXACT)


@pytest.mark.parametrize("deep", [None, deep_prompts(4), deep_prompts(2)])
def test_a_context_for_each_class_is_the_shared_one_if_all_are_equal(tower, deep):
    ctx = draw(4, 32)
    shared = context(tower, ctx, deep=deep)
    each = context(tower, ctx.expand(3, -1, -1), deep=deep)
    assert shared.refuses_prefix() is None and "own context" in str(each.refuses_prefix())
    names = shared.tokenize(NAMES)
    torch.testing.assert_close(shared(names), each(names), **EXACT)


def test_what_all_names_begin_with_changes_nothing(tower):
    tokens = context(tower, draw(4, 32), deep=deep_prompts())
    together = tokens(tokens.tokenize(["of a cat", "of a dog", "of a cat"]))
    apart = tokens(tokens.tokenize(["of a cat", "of a dog", "of a cat", "x"]))[:3]
    torch.testing.assert_close(together, apart, **EXACT)


def test_bounded_memory_changes_no_gradient(tower):
    found = []
    for max_bytes in (None, 300_000):
        tokens = context(tower, draw(4, 32), deep=deep_prompts(), max_bytes=max_bytes)
        features = tokens(tokens.tokenize(NAMES), draw(2, 32, seed=1))
        found.append(torch.autograd.grad(features.square().sum(), list(tokens.parameters())))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


@pytest.mark.parametrize(
    ("make", "level"),
    [
        (lambda clip: CoOp(clip, BASE, class_token_position="front"), "WARNING"),
        (lambda clip: KgCoOp(clip, BASE, class_token_position="front"), "WARNING"),
        (lambda clip: ProDA(clip, BASE, n_prompts=8, n_ctx=2), "INFO"),
    ],
)
def test_prompts_that_run_whole_say_so_once_and_by_the_tuners_name(make, level, caplog):
    prompts._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "vlcal"):
        tuners = [make(tiny_clip(0)) for _ in range(2)]
    said = [(record.levelname, record.message) for record in caplog.records]
    assert said[0] == (
        level,
        f"{tuners[0].name}: every prompt runs whole, nothing is shared: class_token_position is "
        "'front', so context follows the name",
    )
    assert len(said) == len(set(said)) == 1 + (level == "INFO")


def test_a_tower_that_shares_nothing_is_a_warning_for_every_method(monkeypatch, caplog):
    prompts._say_once.cache_clear()
    monkeypatch.setattr(TextTower, "causal", property(lambda tower: False))
    with caplog.at_level(logging.INFO, "vlcal"):
        ProDA(tiny_clip(0), BASE, n_prompts=2, prompts_per_step=1, n_ctx=2)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "proda: every prompt runs whole" in record.message
    assert "is not causal" in record.message


def test_deep_prompts_hold_one_set_less_than_the_depth():
    deep = DeepPrompts(9, 50, 64, torch.Generator().manual_seed(0))
    assert deep().shape == (8, 50, 64)
    assert float(deep().detach().std()) == pytest.approx(0.02, rel=0.02)
    with pytest.raises(ValueError, match="at least 1, got 0 and 4"):
        DeepPrompts(0, 4, 64, torch.Generator())


@pytest.mark.parametrize("shape", [(2, 16), (2, 3, 32), (32,)])
def test_refuses_a_shift_that_does_not_fit(tower, shape):
    tokens = context(tower, draw(4, 32))
    with pytest.raises(ValueError, match=r"shift must be \[B, 32\] or \[B, 4, 32\]"):
        tokens(tokens.tokenize(NAMES), draw(*shape))


def test_refuses_deep_prompts_beyond_the_context(tower):
    tokens = context(tower, draw(4, 32), deep=deep_prompts(5))
    with pytest.raises(ValueError, match="at most 4 prompts per layer"):
        tokens(tokens.tokenize(NAMES))
    with pytest.raises(ValueError, match="class_token_position must be end, got 'middle'"):
        ContextTokens(tower, draw(4, 32), "middle", deep_prompts())

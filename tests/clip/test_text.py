"""The tower without waste computes what open_clip computes."""

import copy

import open_clip
import pytest
import torch

from vlcal.clip import TextTower, text, tiny_clip

WORDS = ["cat", "big heavy airplane", "st. bernard", "x", "three toed sloth on a branch of a tree"]


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(0).double()


@pytest.fixture(scope="module")
def custom():
    """A tower in a module of its own, without the causal mask."""
    config = copy.deepcopy(tiny_clip(0).config)
    config["text_cfg"]["no_causal_mask"] = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.model.CustomTextCLIP(**config).double().eval()


def prompts(clip):
    tokens = clip.text.tokenize([f"a photo of a {word}." for word in WORDS])
    return tokens, clip.text.embed(tokens), clip.text.end(tokens)


def split(embeddings, end, length):
    return embeddings[0, :length], embeddings[:, length:], end - length


@pytest.mark.parametrize("chunk", [1, 2, 256])
def test_encode_equals_open_clip(clip, chunk):
    tokens, embeddings, end = prompts(clip)
    features = clip.text.encode(embeddings, end, chunk=chunk)
    torch.testing.assert_close(features, clip.model.encode_text(tokens), rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 2, 256])
def test_shared_prefix_equals_open_clip(clip, chunk):
    tokens, embeddings, end = prompts(clip)
    features = clip.text.encode_with_prefix(*split(embeddings, end, 5), chunk=chunk)
    torch.testing.assert_close(features, clip.model.encode_text(tokens), rtol=0, atol=1e-10)


def test_shared_prefix_has_the_gradient_of_the_whole_prompt(clip):
    _, embeddings, end = prompts(clip)
    prefix, suffix, short = split(embeddings, end, 5)
    weights = torch.randn(len(WORDS), 16, dtype=torch.float64, generator=torch.Generator())
    gradients = []
    for shared in (False, True):
        ctx = prefix.clone().requires_grad_()
        if shared:
            features = clip.text.encode_with_prefix(ctx, suffix, short, chunk=2)
        else:
            whole = torch.cat([ctx.expand(len(suffix), -1, -1), suffix], 1)
            features = clip.text.encode(whole, end)
        (features * weights).sum().backward()
        gradients.append(ctx.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


def test_padding_is_cut(clip):
    _, embeddings, end = prompts(clip)
    poisoned = embeddings.clone()
    poisoned[:, int(end.max()) + 1 :] = float("nan")
    torch.testing.assert_close(
        clip.text.encode(poisoned, end), clip.text.encode(embeddings, end), rtol=0, atol=0
    )


def test_no_prompts_give_no_features(clip):
    tokens = clip.text.tokenize([])
    features = clip.text.encode(clip.text.embed(tokens), clip.text.end(tokens))
    assert features.shape == (0, 16)


def test_noncausal_tower_runs_every_position(custom, clip):
    tower = TextTower(custom, clip.text.tokenizer)
    tokens = tower.tokenize(WORDS)
    features = tower.encode(tower.embed(tokens), tower.end(tokens), chunk=2)
    torch.testing.assert_close(features, custom.encode_text(tokens), rtol=0, atol=1e-10)


def test_noncausal_tower_refuses_to_share_a_prefix(custom, clip):
    tower = TextTower(custom, clip.text.tokenizer)
    with pytest.raises(NotImplementedError, match="not causal, so a prefix sees what follows"):
        tower.encode_with_prefix(torch.zeros(1, 32), torch.zeros(2, 3, 32), torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [("embed_cls", True, "class token"), ("pool_type", "first", "pools by 'first'")],
)
def test_refuses_prompts_with_a_reason(clip, option, value, reason):
    config = copy.deepcopy(clip.config)
    config["text_cfg"][option] = value
    tower = TextTower(open_clip.model.CustomTextCLIP(**config), clip.text.tokenizer)
    with pytest.raises(NotImplementedError, match=reason):
        tower.embed(tower.tokenize(["a cat"]))


def test_tower_shares_the_models_weights(clip):
    assert clip.text.source is clip.model


def test_text_that_just_fits_is_kept(clip):
    tokens = clip.text.tokenize(["cat " * 22])
    assert int(tokens[0, -1]) == int(tokens.max())


def test_refuses_a_text_that_would_be_truncated(clip):
    with pytest.raises(ValueError, match="a text must fit 24 tokens, got 'cat cat"):
        clip.text.tokenize(["a dog", "cat " * 23])


def test_refuses_one_string(clip):
    with pytest.raises(ValueError, match="list of strings"):
        clip.text.tokenize("cat")


def test_refuses_prompts_longer_than_the_context(clip):
    with pytest.raises(ValueError, match="at most 24 positions, got 25"):
        clip.text.encode(torch.zeros(1, 25, 32).double(), torch.tensor([24]))
    with pytest.raises(ValueError, match=r"at most 24 positions, got 5 \+ 20"):
        clip.text.encode_with_prefix(
            torch.zeros(5, 32).double(), torch.zeros(1, 20, 32).double(), torch.tensor([3])
        )


def test_remembered_tokens_are_the_tokenizers(monkeypatch):
    tower, seen = tiny_clip(0).text, []
    tokenizer = tower.tokenizer
    monkeypatch.setattr(
        tower, "tokenizer", lambda texts, *more: seen.extend(texts) or tokenizer(texts, *more)
    )
    for texts in (["a", "b", "a"], ["b", "c"], ["c", "a", "b"]):
        found = tower.tokenize(texts)
        assert torch.equal(found, tokenizer(texts))
        found.zero_()
    assert seen == ["a", "b", "c"]


def test_memory_of_tokens_is_bounded(monkeypatch):
    tower = tiny_clip(0).text
    monkeypatch.setattr(text, "REMEMBERED", 16)
    for start in range(40):
        texts = [f"word {start}", f"word {start + 1}"]
        assert torch.equal(tower.tokenize(texts), tower.tokenizer(texts))
        assert len(tower._remembered) <= 18
    before = dict(tower._remembered)
    assert tower.tokenize([str(row) for row in range(3)]).shape == (3, 24)
    assert tower._remembered.keys() == before.keys()

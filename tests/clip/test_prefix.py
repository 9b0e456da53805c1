"""Prompts behind a shared prefix get the features and gradients of open_clip's own encode_text."""

import contextlib
import copy

import open_clip
import pytest
import torch
from torch import nn

from vlcal.clip import TextTower, tiny_clip
from vlcal.clip.text import KEPT

WORDS = ["cat", "big heavy airplane", "st. bernard", "x", "three toed sloth on a branch of a tree"]
CTX = 4
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def build(**changes):
    """A random text tower of four blocks in float64 with attention that is not flat."""
    config = copy.deepcopy(tiny_clip(0).config)
    config["text_cfg"] |= {"layers": 4} | changes
    quick = config["text_cfg"].pop("quick_gelu", False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = open_clip.CLIP(**config, quick_gelu=quick).double().eval().requires_grad_(False)
        with torch.no_grad():
            model.token_embedding.weight.mul_(20)
            for block in model.transformer.resblocks:
                block.attn.in_proj_weight.mul_(4)
                block.attn.out_proj.weight.mul_(4)
    return TextTower(model, tiny_clip(0).text.tokenizer)


@pytest.fixture(scope="module")
def tower():
    return build()


@pytest.fixture(scope="module", params=["gelu", "quick_gelu", "proj_bias", "layer_scale"])
def any_tower(request):
    changes = {
        "quick_gelu": {"quick_gelu": True},
        "proj_bias": {"proj_bias": True},
        "layer_scale": {"ls_init_value": 0.3},
    }
    return build(**changes.get(request.param, {}))


class Given(nn.Module):
    """An embedding table that returns what it was made of, whatever it is asked for."""

    def __init__(self, embeddings):
        super().__init__()
        self.embeddings = embeddings
        self.weight = torch.zeros(1, embeddings.shape[-1])

    def forward(self, tokens):
        return self.embeddings


def own(tower, embeddings, tokens, deep=None):
    """open_clip's own encode_text of embeddings, all positions of all prompts."""
    model, handles = tower.source, []
    table, model.token_embedding = model.token_embedding, Given(embeddings)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: setattr(model, "token_embedding", table))
        for layer, vectors in enumerate(() if deep is None else deep):

            def put(block, args, kwargs, vectors=vectors):
                x = args[0].clone()
                x[:, 1 : 1 + len(vectors)] = vectors
                return (x, *args[1:]), kwargs

            block = model.transformer.resblocks[layer + 1]
            handles.append(block.register_forward_pre_hook(put, with_kwargs=True))
            stack.callback(handles[-1].remove)
        return model.encode_text(tokens)


def inputs(tower, seed=0):
    """Context, its shift for three images and deep vectors, and the tokens of all prompts."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, 32, generator=generator, dtype=torch.float64).requires_grad_()

    tokens = tower.tokenize([f"{'X ' * CTX}{word}." for word in WORDS])
    return draw(CTX), draw(3, CTX), draw(3, CTX - 1), tokens


def whole(tower, ctx, tokens, deep=None):
    words = tower.embed(tokens)
    count = len(tokens)
    parts = [words[:, :1], ctx.expand(count, -1, -1), words[:, 1 + CTX :]]
    return own(tower, torch.cat(parts, 1), tokens, deep)


def shared(tower, ctx, tokens, **options):
    start = tower.embed(tokens[0, :1]).expand(*ctx.shape[:-2], 1, -1)
    rest = tokens[:, 1 + CTX :]
    end = tower.end(tokens) - 1 - CTX
    return tower.encode_with_prefix(torch.cat([start, ctx], -2), rest, end, **options)


def gradients(features, leaves, seed=1):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(features.shape, generator=generator, dtype=torch.float64)
    loss = (features * weights).sum()
    return torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)


def smallest(tower):
    """Bytes that hold the longest name and not two."""
    longest = max(len(tower.tokenizer.encode(word)) for word in WORDS) + 2
    return KEPT * 4 * 32 * 8 * longest


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_shared_prefix_is_open_clips_own_computation(any_tower, chunk):
    ctx, _, _, tokens = inputs(any_tower)
    ours = shared(any_tower, ctx, tokens, chunk=chunk)
    theirs = whole(any_tower, ctx, tokens)
    torch.testing.assert_close(ours, theirs, **EXACT)
    torch.testing.assert_close(gradients(ours, ctx), gradients(theirs, ctx), **EXACT)


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("bounded", [False, True])
def test_deep_prompts_replace_the_context_in_later_blocks(tower, layers, bounded):
    ctx, _, deep, tokens = inputs(tower)
    max_bytes = smallest(tower) if bounded else None
    ours = shared(tower, ctx, tokens, deep=deep[:layers], max_bytes=max_bytes)
    theirs = whole(tower, ctx, tokens, deep[:layers])
    torch.testing.assert_close(ours, theirs, **EXACT)
    for got, wanted in zip(
        gradients(ours, (ctx, deep)), gradients(theirs, (ctx, deep)), strict=True
    ):
        torch.testing.assert_close(got, wanted, **EXACT)
    if layers:
        assert (ours - shared(tower, ctx, tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("chunk", [1, 4, 7, 10, 256])
@pytest.mark.parametrize("bounded", [False, True])
def test_one_prefix_per_image(tower, chunk, bounded):
    ctx, shift, deep, tokens = inputs(tower)
    max_bytes = smallest(tower) if bounded else None
    moved = ctx + shift[:, :1]
    ours = shared(tower, moved, tokens, chunk=chunk, deep=deep, max_bytes=max_bytes)
    theirs = torch.stack([whole(tower, one, tokens, deep) for one in moved])
    torch.testing.assert_close(ours, theirs, **EXACT)
    leaves = (ctx, shift, deep)
    for got, wanted in zip(gradients(ours, leaves), gradients(theirs, leaves), strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
def test_prompts_without_a_common_prefix(tower, bounded, layered):
    ctx, _, deep, tokens = inputs(tower)
    words, end = tower.embed(tokens), tower.end(tokens)
    own_context = ctx * torch.arange(1, 6)[:, None, None]
    each = torch.cat([words[:, :1], own_context, words[:, 5:]], 1)
    max_bytes = KEPT * 4 * 32 * 8 * 24 if bounded else None
    given = deep if layered else None
    ours = tower.encode(each, end, chunk=2, deep=given, max_bytes=max_bytes)
    theirs = own(tower, each, tokens, given)
    torch.testing.assert_close(ours, theirs, **EXACT)
    (got,), (wanted,) = gradients(ours, (ctx,)), gradients(theirs, (ctx,))
    torch.testing.assert_close(got, wanted, **EXACT)


def test_every_token_runs_once_and_padding_never(tower):
    ctx, _, _, tokens = inputs(tower)
    counts = [0] * 4
    with contextlib.ExitStack() as stack:
        for layer, block in enumerate(tower.source.transformer.resblocks):

            def count(module, args, layer=layer):
                counts[layer] += args[0].numel() // 32

            stack.callback(block.mlp.register_forward_pre_hook(count).remove)
        shared(tower, ctx, tokens, chunk=2)
    names = int((tower.end(tokens) - CTX).sum())
    assert counts == [1 + CTX + names] * 3 + [len(WORDS)]


def kept_bytes(tower, run):
    """Bytes of the tensors that autograd keeps, without the tower's weights."""
    weights = {p.untyped_storage().data_ptr() for p in tower.source.parameters()}
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = run()
    return features, sum(size for size, _ in found.values())


def test_estimate_of_what_is_kept_is_an_upper_one(any_tower):
    ctx, _, _, tokens = inputs(any_tower)
    _, kept = kept_bytes(any_tower, lambda: shared(any_tower, ctx, tokens))
    names = int((any_tower.end(tokens) - CTX).sum())
    assert kept <= KEPT * 4 * 32 * 8 * names


def test_bounded_memory_runs_small_passes_again(tower, monkeypatch):
    ctx, _, _, tokens = inputs(tower)
    passes, run = [], tower._packed

    def watched(layers, start, prompts, end):
        passes.append(KEPT * 4 * 32 * 8 * int((end + 1).sum()) * len(layers[0][0]))
        return run(layers, start, prompts, end)

    monkeypatch.setattr(tower, "_packed", watched)
    bound = 2 * smallest(tower)
    features = shared(tower, ctx, tokens, max_bytes=bound)
    forward = len(passes)
    assert forward > 1 and max(passes) <= bound
    features.sum().backward()
    assert len(passes) == 2 * forward
    passes.clear()
    shared(tower, ctx, tokens, max_bytes=10**9)
    with torch.no_grad():
        shared(tower, ctx, tokens, max_bytes=bound)
    assert len(passes) == 2


def test_refuses_a_bound_below_one_prompt(tower):
    ctx, _, _, tokens = inputs(tower)
    bound = smallest(tower)
    with pytest.raises(ValueError, match=f"max_bytes must be at least {bound} .*, got 1000"):
        shared(tower, ctx, tokens, max_bytes=1000)


@pytest.mark.parametrize("shape", [(4, 2, 32), (2, 5, 32), (2, 2, 16), (2, 32)])
def test_refuses_deep_prompts_that_do_not_fit(tower, shape):
    ctx, _, _, tokens = inputs(tower)
    with pytest.raises(ValueError, match=r"deep must be \[at most 3, at most 4, 32\]"):
        shared(tower, ctx, tokens, deep=torch.zeros(shape).double())


@pytest.mark.parametrize(("images", "words"), [((), 0), ((2,), 0), ((0,), 5)])
def test_nothing_gives_no_features(tower, images, words):
    ctx, _, _, tokens = inputs(tower)
    prefix, end = ctx.expand(*images, -1, -1), tower.end(tokens)[:words]
    features = tower.encode_with_prefix(prefix, tokens[:words, 5:], end)
    assert features.shape == (*images, words, 16)


def test_common_prefix_ends_before_the_first_end_token(tower):
    tokens = tower.tokenize(["a photo of a cat", "a photo of a", "a photo of a cat"])
    assert tower.common_prefix(tokens, tower.end(tokens)) == 5
    assert tower.common_prefix(tokens[:1], tower.end(tokens[:1])) == 6
    tokens = tower.tokenize(["a cat", "my dog"])
    assert tower.common_prefix(tokens, tower.end(tokens)) == 1

"""The text tower at ViT-B size, beside open_clip's own computation of 77 tokens for every prompt.

A training step is forward, loss and backward on unit image features; the optimizer's few additions
are left out. Weights are random, which the time does not depend on.
"""

import copy
import functools

import open_clip
import pytest
import torch
import torch.nn.functional as F

from benchmarks import workloads
from benchmarks.measure import Provider
from vlcal.clip import CLIP, Preprocess
from vlcal.clip.tiny import byte_pair_tokenizer
from vlcal.data import vocabulary
from vlcal.tuners import CoOp
from vlcal.tuners.cocoop import CoCoOp
from vlcal.types import ClassSet

CONFIG = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 12,
    },
}
BOUND = 2 * 2**30  # bytes that 20,000 classes may keep
BUDGET = 1e-4  # of unit features and of unit gradients in float32
BATCH = 64  # words per pass, on both sides


@functools.cache
def clip():
    """OpenAI's ViT-B text tower with random weights, and hardly an image tower."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**copy.deepcopy(CONFIG), quick_gelu=True)
    preprocess = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return CLIP(model, byte_pair_tokenizer(77), preprocess, name="random-B", config=CONFIG)


def names(count):
    """Nouns from everywhere in the alphabet."""
    everything = vocabulary.nouns()
    return everything[:: len(everything) // count][:count]


def batch(workload):
    """Unit image features [n, D] and labels of a step."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(workload.classes, (workload.n,), generator=generator)
    return workloads.clip_like(workload.n, 512, 1), labels


def own_step(tuner, images, labels):
    """A function that makes our step and gives the loss and the context's gradient."""
    tuner.train()

    def step():
        tuner.zero_grad()
        loss = torch.stack(list(tuner.losses(tuner(images), labels).values())).sum()
        loss.backward()
        return torch.cat(
            [loss.detach()[None], F.normalize(tuner.context.ctx.grad.flatten(), dim=0)]
        )

    return step


def plain_step(tuner, images, labels, longest=77):
    """The same as the papers' code has it: all prompts with `longest` positions, for each image
    where images shift the context."""
    tower, model, ctx = tuner.clip.text, tuner.clip.model, tuner.context.ctx
    filler = " ".join(["X"] * len(ctx))
    tokens = tower.tokenize([f"{filler} {name}." for name in tuner.classes.names])
    words, end = model.token_embedding(tokens), tokens.argmax(-1)

    def encode(context):
        parts = [words[:, :1], context.expand(len(words), -1, -1), words[:, 1 + len(ctx) :]]
        x = (torch.cat(parts, 1) + model.positional_embedding)[:, :longest]
        x = model.transformer(x, attn_mask=model.attn_mask[:longest, :longest])
        x = model.ln_final(x)[torch.arange(len(x)), end] @ model.text_projection
        return F.normalize(x, dim=-1)

    def step():
        tuner.zero_grad()
        if isinstance(tuner, CoCoOp):
            shifts = tuner.meta_net(images)
            rows = [
                image @ encode(ctx + shift).T for image, shift in zip(images, shifts, strict=True)
            ]
            logits = tuner.logit_scale * torch.stack(rows)
        else:
            logits = tuner.logit_scale * images @ encode(ctx).T
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        return torch.cat([loss.detach()[None], F.normalize(ctx.grad.flatten(), dim=0)])

    return step


def check_step(bench, op, method, options):
    """Gate: loss and gradient of a step over a few classes are the plain step's."""
    tuner = method(clip(), ClassSet(tuple(names(8))), **options)
    images, labels = batch(workloads.Workload("gate", "a few classes", 2, 8))
    ours, theirs = own_step(tuner, images, labels)(), plain_step(tuner, images, labels)()
    bench.check_value(op, ours, theirs, BUDGET)


@pytest.mark.parametrize("workload", workloads.PROMPTS, ids=str)
@pytest.mark.parametrize(
    ("method", "options", "images"),
    [(CoOp, {"n_ctx": 16}, None), (CoCoOp, {"n_ctx": 4, "ctx_init": "a photo of a"}, 1)],
    ids=["coop", "cocoop"],
)
def bench_step(bench, method, options, images, workload):
    if images and not bench.full:
        pytest.skip("large workload: --full runs it")
    op = f"{method.name}_step"
    check_step(bench, op, method, options)
    tuner = method(clip(), ClassSet(tuple(names(workload.classes))), **options)
    features, labels = (tensor[:images] for tensor in batch(workload))
    cut = longest_prompt(tuner)
    bench.compare(
        op,
        workload,
        [
            Provider("vlcal", own_step(tuner, features, labels)),
            Provider("open_clip, 77 tokens", plain_step(tuner, features, labels), target=8),
            Provider(
                f"open_clip, {cut} tokens", plain_step(tuner, features, labels, cut), full=True
            ),
        ],
        rounds=3,
    )


def longest_prompt(tuner):
    """Positions that the longest prompt needs: the shortest the papers' code could be cut to."""
    return tuner.context.n_ctx + int(tuner.context.tokenize(tuner.classes.names).end.max()) + 1


@pytest.mark.parametrize("workload", workloads.OWN_PROMPTS, ids=str)
def bench_own_step(bench, workload):
    check_step(bench, "coop_step", CoOp, {"n_ctx": 16})
    tuner = CoOp(clip(), ClassSet(tuple(names(workload.classes))), n_ctx=16)
    tuner.context.max_bytes = BOUND
    bench.once("coop_step", workload, Provider("vlcal", own_step(tuner, *batch(workload))))


@pytest.mark.parametrize("workload", workloads.WORDS, ids=str)
def bench_vocabulary(bench, workload):
    texts = [f"a photo of a {name}." for name in names(workload.n)]
    model, tokenizer = clip().model, clip().text.tokenizer

    def ours():
        with torch.no_grad():
            return clip().encode_text(texts, chunk=BATCH)

    def plain():
        with torch.no_grad():
            return model.encode_text(tokenizer(texts[:BATCH]), normalize=True)

    bench.check_value("encode_text", ours()[:BATCH], plain(), BUDGET)
    name = f"open_clip, 77 tokens, {BATCH} words extrapolated"
    share = BATCH / workload.n
    bench.compare(
        "encode_text",
        workload,
        [Provider("vlcal", ours), Provider(name, plain, target=10, share=share)],
        rounds=3,
    )

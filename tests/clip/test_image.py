"""The image tower with prompts computes what open_clip's own would with the tokens put in."""

import contextlib
import copy

import open_clip
import pytest
import torch

from vlcal.clip import ImageTower, tiny_clip

EXACT = {"rtol": 1e-10, "atol": 1e-10}
PATCHES = 4


def build(**changes):
    """A random model of four blocks in float64 with attention that is not flat."""
    config = copy.deepcopy(tiny_clip(0).config)
    config["vision_cfg"] |= {"layers": 4} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = open_clip.CLIP(**config).double().eval().requires_grad_(False)
        with torch.no_grad():
            for block in getattr(model.visual, "transformer", model.transformer).resblocks:
                block.attn.in_proj_weight.mul_(4)
                block.attn.out_proj.weight.mul_(4)
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, 16, 16, dtype=torch.float64, generator=generator)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def own(model, images, prompts, deep):
    """open_clip's own encode_image, prompts put in by hooks as the papers' code does."""
    visual = model.visual

    def append(norm, args):
        return (torch.cat([args[0], prompts.expand(len(args[0]), -1, -1)], 1),)

    with contextlib.ExitStack() as stack:
        stack.callback(visual.ln_pre.register_forward_pre_hook(append).remove)
        for layer, vectors in enumerate(deep):

            def put(block, args, kwargs, vectors=vectors):
                x = args[0].clone()
                x[:, 1 + PATCHES : 1 + PATCHES + len(vectors)] = vectors
                return (x, *args[1:]), kwargs

            block = visual.transformer.resblocks[layer + 1]
            hook = block.register_forward_pre_hook(put, with_kwargs=True)
            stack.callback(hook.remove)
        return model.encode_image(images)


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("changes", [{}, {"ls_init_value": 0.3}, {"no_ln_pre": True}], ids=str)
def test_prompts_stand_behind_the_patches_and_are_replaced_per_block(images, layers, changes):
    model = build(**changes)
    prompts, deep = draw(2, 32), draw(3, 2, 32, seed=1)
    ours = ImageTower(model).encode(images, prompts, deep[:layers])
    theirs = own(model, images, prompts, deep[:layers])
    torch.testing.assert_close(ours, theirs, **EXACT)
    weights = torch.randn(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    both = [
        torch.autograd.grad((f * weights).sum(), (prompts, deep), materialize_grads=True)
        for f in (ours, theirs)
    ]
    for got, wanted in zip(*both, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


def test_without_prompts_it_is_open_clips_own(model, images):
    ours = ImageTower(model).encode(images)
    torch.testing.assert_close(ours, model.encode_image(images), rtol=0, atol=0)


def test_fewer_deep_prompts_leave_the_rest(model, images):
    prompts, deep = draw(3, 32), draw(2, 1, 32, seed=1)
    ours = ImageTower(model).encode(images, prompts, deep)
    torch.testing.assert_close(ours, own(model, images, prompts, deep), **EXACT)


def test_prompts_change_the_features(model, images):
    tower, prompts = ImageTower(model), draw(2, 32)
    with_prompts = tower.encode(images, prompts)
    assert (with_prompts - tower.encode(images)).abs().max() > 1e-3
    assert (with_prompts - tower.encode(images, prompts, draw(1, 2, 32))).abs().max() > 1e-3


def test_clip_offers_its_image_tower():
    clip = tiny_clip(0)
    assert (clip.image.width, clip.image.layers) == (32, 2)
    assert clip.image.source is clip.model.visual


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers": [1, 1, 1, 1]}, "not open_clip's own vision transformer"),
        ({"attentional_pool": True}, "pools by attention"),
        ({"pool_type": "avg"}, "pools by 'avg'"),
    ],
)
def test_refuses_prompts_with_a_reason(images, changes, reason):
    tower = ImageTower(build(**changes, **({"image_size": 32} if "layers" in changes else {})))
    with pytest.raises(NotImplementedError, match=reason):
        tower.encode(images, torch.zeros(2, 32).double())


@pytest.mark.parametrize(
    ("prompts", "deep", "message"),
    [
        ((2, 16), None, r"prompts must be \[n, 32\], got \(2, 16\)"),
        ((2, 32), (4, 2, 32), r"deep must be \[at most 3, at most 2, 32\]"),
        ((2, 32), (3, 3, 32), r"deep must be \[at most 3, at most 2, 32\]"),
        (None, (3, 2, 32), "deep replaces prompts, but prompts is None"),
    ],
)
def test_refuses_prompts_that_do_not_fit(model, images, prompts, deep, message):
    given = [None if shape is None else torch.zeros(shape).double() for shape in (prompts, deep)]
    with pytest.raises(ValueError, match=message):
        ImageTower(model).encode(images, *given)


def test_refuses_images_of_another_size(model):
    with pytest.raises(ValueError, match="images must give 4 patches"):
        ImageTower(model).encode(torch.zeros(1, 3, 32, 32).double(), draw(2, 32))

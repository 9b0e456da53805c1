"""The laws every tuner obeys, and what is special about CoOp."""

import pytest
import torch
from safetensors.torch import load_file

from vlcal.clip import tiny_clip
from vlcal.tuners import (
    RECIPES,
    TUNERS,
    CoOp,
    Recipe,
    Tuner,
    ZeroShot,
    by_name,
    load_tuner,
    save_tuner,
)
from vlcal.tuners.prompts import interleave
from vlcal.types import ClassSet

BASE = ClassSet(("cat", "big_heavy airplane", "dog", "tree"))
NEW = ClassSet(("house", "three toed sloth", "moth"))
VARIANTS = [
    *((cls, {}) for cls in TUNERS),
    (CoOp, {"ctx_init": "a photo of a"}),
    (CoOp, {"n_ctx": 5, "class_token_position": "middle"}),
    (CoOp, {"n_ctx": 5, "class_token_position": "front"}),
    (CoOp, {"n_ctx": 5, "class_specific": True}),
]
OPEN = [pair for pair in VARIANTS if not pair[1].get("class_specific")]
LEARNERS = [(cls, options) for cls, options in VARIANTS if cls is not ZeroShot]


def ids(value):
    return getattr(value, "name", None) or ",".join(map(str, value.values())) or "default"


every_tuner = pytest.mark.parametrize(("cls", "options"), VARIANTS, ids=ids)
every_learner = pytest.mark.parametrize(("cls", "options"), LEARNERS, ids=ids)


@pytest.fixture(scope="module")
def clip():
    torch.set_num_threads(1)
    return tiny_clip(0)


@pytest.fixture
def images():
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])


def perturb(tuner):
    with torch.no_grad():
        for number, parameter in enumerate(tuner.parameters()):
            noise = torch.Generator().manual_seed(number)
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise))
    return tuner.eval()


# -- laws


def test_untrained_coop_is_zero_shot(clip, images):
    coop = CoOp(clip, BASE, ctx_init="a photo of a")
    zero_shot = ZeroShot(clip, ClassSet(BASE.names, "a photo of a {}."))
    torch.testing.assert_close(coop(images), zero_shot(images), rtol=0, atol=2e-5)
    torch.testing.assert_close(
        coop.encode_text(["fox", "polar_bear"]), zero_shot.encode_text(["fox", "polar_bear"])
    )


@every_learner
def test_only_declared_parameters_get_gradients(clip, images, labels, cls, options):
    tuner = cls(clip, BASE, **options)
    tuner.backward(tuner.losses(tuner(images), labels))
    assert all(bool(p.grad.abs().sum() > 0) for p in tuner.parameters())
    assert all(p.grad is None for p in clip.parameters())
    assert [name for name, _ in tuner.named_parameters()] == list(tuner.state_dict())


@every_learner
def test_loss_falls_over_ten_steps(clip, images, labels, cls, options):
    tuner = cls(clip, BASE, **options)
    optimizer = torch.optim.SGD(tuner.parameters(), 0.02, momentum=0.9)
    losses = []
    for _ in range(11):
        optimizer.zero_grad()
        terms = tuner.losses(tuner(images), labels)
        tuner.backward(terms)
        optimizer.step()
        losses.append(sum(float(term.detach()) for term in terms.values()))
    assert losses[-1] < losses[0] - 1e-3


@every_tuner
def test_saved_and_loaded_tuner_predicts_the_same(clip, images, tmp_path, cls, options):
    tuner = perturb(cls(clip, BASE, **options))
    save_tuner(tuner, tmp_path)
    again = load_tuner(tmp_path, clip)
    with torch.no_grad():
        assert torch.equal(again.predict(images).logits, tuner.predict(images).logits)
    assert again.classes == BASE and type(again) is cls
    assert set(load_file(tmp_path / "model.safetensors")) == set(tuner.state_dict())


@pytest.mark.parametrize(("cls", "options"), OPEN, ids=ids)
@torch.no_grad()
def test_base_new_base_restores_the_logits(clip, images, cls, options):
    tuner = perturb(cls(clip, BASE, **options))
    before = tuner(images).logits
    tuner.set_classes(NEW)
    assert tuner(images).logits.shape == (8, 3)
    tuner.set_classes(BASE)
    assert torch.equal(tuner(images).logits, before)


@every_tuner
@torch.no_grad()
def test_equal_seeds_give_equal_tuners(clip, images, cls, options):
    first, second = cls(clip, BASE, **options), cls(tiny_clip(0), BASE, **options)
    assert torch.equal(first(images).logits, second(images).logits)


@every_tuner
def test_outputs_are_unit_features_and_scaled_cosines(clip, images, cls, options):
    out = cls(clip, BASE, **options)(images)
    for features in (out.image_features, out.text_features):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))
    expected = clip.logit_scale * out.image_features @ out.text_features.T
    torch.testing.assert_close(out.logits, expected)


@every_tuner
def test_class_features_are_those_of_the_words(clip, cls, options):
    tuner = perturb(cls(clip, BASE, **options))
    torch.testing.assert_close(tuner.encode_text(BASE.names), tuner.class_features())


@every_tuner
@torch.no_grad()
def test_features_take_the_place_of_images(clip, images, cls, options):
    tuner = cls(clip, BASE, **options)
    assert torch.equal(tuner(clip.encode_image(images)).logits, tuner(images).logits)


@every_learner
def test_text_features_are_computed_once_until_something_changes(clip, cls, options, monkeypatch):
    tuner = cls(clip, BASE, **options).eval()
    calls = []
    compute = tuner.class_features
    monkeypatch.setattr(tuner, "class_features", lambda: calls.append(1) or compute())
    with torch.no_grad():
        first = tuner.text_features()
        assert tuner.text_features() is first
        next(tuner.parameters()).add_(0.1)
        assert not torch.equal(tuner.text_features(), first)
        tuner.train().eval()
        tuner.text_features()
        tuner.set_classes(BASE)
        tuner.text_features()
    assert len(calls) == 4
    assert tuner.text_features().requires_grad


# -- CoOp


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


def test_learning_rates_are_the_published_ones():
    recipe = Recipe(epochs=5, lr=0.0035)
    rates = [recipe.rate(epoch) for epoch in range(5)]
    assert rates == pytest.approx([1e-5, 0.0035, 0.003166, 0.002291, 0.001209], abs=5e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: CoOp(clip, BASE, n_ctx=7, ctx_init="a photo of a"), "n_ctx must be 4 for"),
        (lambda clip: CoOp(clip, BASE, n_ctx=0), r"n_ctx must be in 1\.\.21"),
        (lambda clip: CoOp(clip, BASE, n_ctx=22), r"n_ctx must be in 1\.\.21"),
        (lambda clip: CoOp(clip, BASE, class_token_position="left"), "one of end, middle, front"),
        (lambda clip: CoOp(clip, ClassSet(())), "at least one class"),
        (
            lambda clip: CoOp(clip, ClassSet(("a b c d e f",))),
            "'a b c d e f' needs 9 tokens beside 16 of context, but the tower has 24",
        ),
        (lambda clip: ZeroShot(clip, BASE).encode_text("fox"), "list of strings, got one string"),
        (lambda clip: CoOp(clip, BASE).encode_text("fox"), "list of strings, got one string"),
        (lambda clip: CoOp(clip, BASE)(torch.zeros(2, 5)), r"must be \[B, 16\], got \(2, 5\)"),
        (lambda clip: Recipe(epochs=0), "epochs must be at least 1"),
        (lambda clip: Recipe(lr=float("nan")), "lr must be positive"),
        (lambda clip: Recipe(precision="fp16"), "fp32 or bf16"),
        (lambda clip: by_name("cop"), "unknown tuner 'cop'; known: zero_shot, coop"),
        (lambda clip: by_name("vlcal.types:Batch"), "is not a Tuner"),
    ],
)
def test_refuses_with_a_reason(clip, make, message):
    with pytest.raises(ValueError, match=message):
        make(clip)


def test_names_resolve_to_classes():
    assert by_name("coop") is by_name("vlcal.tuners.coop:CoOp") is CoOp


def test_a_method_without_vocabulary_says_so(clip):
    class Fixed(Tuner):
        name = "fixed"

    with pytest.raises(NotImplementedError, match="fixed: has no open vocabulary"):
        Fixed(clip, BASE).encode_text(["fox"])


def test_moving_a_tuner_moves_its_model():
    tuner = CoOp(tiny_clip(0), BASE).double()
    assert tuner.clip.dtype == torch.float64
    assert tuner(torch.zeros(2, 3, 16, 16)).logits.dtype == torch.float64

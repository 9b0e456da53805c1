"""The laws every tuner obeys, on all of TUNERS and on variants of some."""

import pytest
import torch
from safetensors.torch import load_file

from vlcal.clip import tiny_clip
from vlcal.prediction import predict
from vlcal.tuners import (
    IVLP,
    RECIPES,
    TUNERS,
    VPT,
    CoCoOp,
    CoOp,
    KgCoOp,
    MaPLe,
    ProDA,
    ProGrad,
    PromptSRC,
    Recipe,
    Tuner,
    ZeroShot,
    by_name,
    check_options,
    load_tuner,
    save_tuner,
)
from vlcal.types import Batch, ClassSet

BASE = ClassSet(("cat", "big_heavy airplane", "dog", "tree"))
NEW = ClassSet(("house", "three toed sloth", "moth"))
VARIANTS = [
    *((cls, {}) for cls in TUNERS),
    (CoOp, {"ctx_init": "a photo of a"}),
    (CoOp, {"n_ctx": 5, "class_token_position": "middle"}),
    (CoOp, {"n_ctx": 5, "class_token_position": "front"}),
    (CoOp, {"n_ctx": 5, "class_specific": True}),
    (CoCoOp, {"n_ctx": 5, "ctx_init": None}),
    (KgCoOp, {"template": "a sketch of a {}.", "class_token_position": "front"}),
    (ProGrad, {"n_ctx": 5, "ctx_init": "a drawing of"}),
    (ProDA, {"n_ctx": 3, "n_prompts": 6, "prompts_per_step": 2, "normalize": True}),
    (MaPLe, {"ctx_init": None, "n_ctx": 3}),
    (MaPLe, {"prompt_depth": 1}),
    (IVLP, {"n_ctx": 4, "n_ctx_vision": 3, "prompt_depth": 2, "prompt_depth_vision": 1}),
    (IVLP, {"ctx_init": None, "prompt_depth": 1}),
    (PromptSRC, {"templates": ["a photo of a {}.", "art of a {}."], "n_ctx": 2}),
    (VPT, {"n_ctx_vision": 2, "prompt_depth_vision": 1, "template": None}),
]
OPEN = [pair for pair in VARIANTS if not pair[1].get("class_specific")]
LEARNERS = [(cls, options) for cls, options in VARIANTS if cls is not ZeroShot]
TEXT_LEARNERS = [(cls, options) for cls, options in LEARNERS if cls is not VPT]


def ids(value):
    return getattr(value, "name", None) or ",".join(map(str, value.values())) or "default"


every_tuner = pytest.mark.parametrize(("cls", "options"), VARIANTS, ids=ids)
every_learner = pytest.mark.parametrize(("cls", "options"), LEARNERS, ids=ids)
every_text_learner = pytest.mark.parametrize(("cls", "options"), TEXT_LEARNERS, ids=ids)


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


@pytest.mark.parametrize(
    ("cls", "options"),
    [(CoOp, {"ctx_init": "a photo of a"}), (KgCoOp, {}), (ProGrad, {"n_ctx": 4})],
    ids=ids,
)
@torch.no_grad()
def test_untrained_equals_zero_shot_where_it_starts_from_a_phrase(clip, images, cls, options):
    tuner, zero_shot = cls(clip, BASE, **options), ZeroShot(clip, BASE)
    torch.testing.assert_close(tuner(images), zero_shot(images), rtol=0, atol=2e-5)
    torch.testing.assert_close(
        tuner.encode_text(["fox", "polar_bear"]), zero_shot.encode_text(["fox", "polar_bear"])
    )


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (CoCoOp, {}),
        (VPT, {}),
        (IVLP, {"prompt_depth": 1}),
        (MaPLe, {"prompt_depth": 1}),
        (PromptSRC, {"prompt_depth": 1}),
    ],
    ids=ids,
)
@torch.no_grad()
def test_untrained_words_equal_zero_shot_where_only_images_are_prompted(clip, cls, options):
    tuner, zero_shot = cls(clip, BASE, **options).eval(), ZeroShot(clip, BASE)
    torch.testing.assert_close(tuner.text_features(), zero_shot.text_features())


@every_learner
def test_only_declared_parameters_get_gradients(clip, images, labels, cls, options):
    tuner = cls(clip, BASE, **options)
    tuner.backward(tuner.losses(tuner(images), labels))
    assert all(bool(p.grad.abs().sum() > 0) for p in tuner.parameters())
    assert all(p.grad is None for p in clip.parameters())
    assert [name for name, _ in tuner.named_parameters()] == list(tuner.state_dict())


@every_tuner
def test_what_is_said_to_be_learned_is(clip, images, cls, options):
    tuner = cls(clip, BASE, **options).train()
    out = tuner(images)
    assert tuner.class_features().requires_grad == cls.learns_text
    assert out.image_features.requires_grad == cls.learns_images
    frozen = tuner.frozen_image_features(images, out)
    assert not frozen.requires_grad
    torch.testing.assert_close(frozen, clip.encode_image(images))


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


def kept_bytes(clip, run):
    """What something gives, and the bytes that autograd keeps for it beside the model's weights."""
    weights, found = {p.untyped_storage().data_ptr() for p in clip.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    return result, sum(size for size, _ in found.values())


@every_text_learner
def test_bounded_memory_keeps_less_and_changes_no_gradient(images, labels, cls, options):
    clip, found = tiny_clip(0).double(), []
    names = ClassSet(tuple(f"{word} {name}" for name in BASE.names for word in "abcdefgh"))
    # the longest prompt has 24 positions of 10,240 bytes
    bound = 250_000 * (1 + options.get("prompts_per_step", 4) if cls is ProDA else 1)
    for max_bytes in (None, bound):
        tuner = cls(clip, names, **options, max_bytes=max_bytes).double().train()
        assert "max_bytes" not in tuner.hyperparameters
        features, kept = kept_bytes(clip, tuner.class_features)
        losses = tuner.losses(tuner(images[:1]), labels[:1])
        tuner.backward(losses)
        gradients = torch.cat([p.grad.flatten() for p in tuner.parameters()])
        found.append((features.detach(), gradients, kept))
    (features, gradients, kept), (other, others, less) = found
    torch.testing.assert_close(other, features, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(others, gradients, rtol=1e-9, atol=1e-12)
    assert less < kept / 2


@every_text_learner
@pytest.mark.parametrize("max_bytes", [0, True, "1 GB", 1e9])
def test_a_bound_that_is_no_number_of_bytes_is_refused(clip, cls, options, max_bytes):
    with pytest.raises(ValueError, match=f"{cls.name}: max_bytes must be an integer of at least"):
        cls(clip, BASE, **options, max_bytes=max_bytes)


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
def test_outputs_are_unit_features_and_scaled_cosines_where_linear(clip, images, cls, options):
    out = cls(clip, BASE, **options)(images)
    for features in (out.image_features, out.text_features):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))
    expected = clip.logit_scale * out.image_features @ out.text_features.T
    if cls.linear or options.get("normalize"):
        torch.testing.assert_close(out.logits, expected)
    else:
        assert out.logits.shape == expected.shape
        assert float((out.logits - expected).detach().abs().max()) > 1e-3


@every_tuner
def test_class_features_are_those_of_the_words(clip, cls, options):
    tuner = perturb(cls(clip, BASE, **options))
    torch.testing.assert_close(tuner.encode_text(BASE.names), tuner.class_features())


@every_tuner
@torch.no_grad()
def test_features_take_the_place_of_images_unless_images_are_prompted(clip, images, cls, options):
    tuner, features = cls(clip, BASE, **options), clip.encode_image(images)
    if cls.learns_images:
        assert not torch.allclose(tuner.image_features(images), features, atol=1e-3)
        with pytest.raises(ValueError, match=f"{cls.name}: needs images, got features"):
            tuner(features)
    else:
        assert torch.equal(tuner(features).logits, tuner(images).logits)


@every_tuner
def test_predictions_hold_the_logits_of_the_tuner(clip, images, labels, cls, options):
    tuner, zero_shot = perturb(cls(clip, BASE, **options)), ZeroShot(clip, BASE)
    batches = [
        Batch(images[rows], labels[rows], torch.arange(8)[rows])
        for rows in (slice(0, 5), slice(5, 8))
    ]
    found = predict(tuner, batches, zero_shot)
    with torch.no_grad():
        torch.testing.assert_close(found.logits, tuner(images).logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.zero_shot.logits, zero_shot(images).logits)
    assert found.text_features.shape == (4, 16)


@pytest.mark.parametrize("cls", [cls for cls in TUNERS if cls is not ZeroShot], ids=ids)
def test_every_published_setting_builds_a_tuner_with_its_arguments(clip, cls):
    assert "dac2024" in cls.settings or cls is IVLP
    for setting in RECIPES[cls.name].values():
        # the tiny towers have two blocks
        shallow = {
            name: min(value, 2) if "depth" in name else value
            for name, value in setting.arguments.items()
        }
        tuner = cls(clip, BASE, **shallow)
        wanted = {name: value for name, value in shallow.items() if value is not None}
        assert wanted.items() <= tuner.hyperparameters.items()
        check_options(cls, tuner.hyperparameters)


@every_text_learner
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
        (lambda clip: Recipe(precision="fp8"), "one of fp32, bf16, fp16, got 'fp8'"),
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


def test_learning_rates_are_the_published_ones():
    recipe = Recipe(epochs=5, lr=0.0035)
    rates = [recipe.rate(epoch) for epoch in range(5)]
    assert rates == pytest.approx([1e-5, 0.0035, 0.003166, 0.002291, 0.001209], abs=5e-7)

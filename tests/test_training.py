"""The training loop: recipe, regularizers, interruptions, resumption."""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from vlcal.clip import tiny_clip
from vlcal.data import transforms
from vlcal.data.items import Dataset, Item
from vlcal.data.items import loader as image_loader
from vlcal.regularizers import Regularizer
from vlcal.training import TrainingDiverged, fit
from vlcal.tuners import CoOp, FeatureBatches, Recipe, ZeroShot
from vlcal.types import Batch, ClassSet

CLASSES = ClassSet(("cat", "big_heavy airplane", "dog", "tree"))
SHORT = Recipe(epochs=4, lr=0.05, batch_size=4)


@pytest.fixture(scope="module")
def clip():
    torch.set_num_threads(1)
    return tiny_clip(0)


def data():
    noise = torch.Generator().manual_seed(2)
    labels = torch.arange(10) % 4
    features = torch.randn(2, 10, 16, generator=noise)
    return torch.nn.functional.normalize(features, dim=-1), labels


def loader(size=4):
    return FeatureBatches(*data(), size)


def state(tuner):
    return torch.cat([p.detach().flatten() for p in tuner.parameters()])


def trained(clip, recipe=SHORT, **options):
    tuner = CoOp(clip, CLASSES, n_ctx=4)
    return tuner, fit(tuner, loader(), recipe, **options)


def test_loop_is_sgd_with_the_recipes_rates(clip):
    tuner, history = trained(clip, seed=3)
    twin, batches = CoOp(clip, CLASSES, n_ctx=4), loader()
    batches.generator.manual_seed(3000)
    optimizer = torch.optim.SGD(twin.parameters(), 1.0, momentum=0.9, weight_decay=5e-4)
    for epoch in range(4):
        optimizer.param_groups[0]["lr"] = SHORT.rate(epoch)
        for batch in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(twin(batch.images).logits, batch.labels).backward()
            optimizer.step()
    assert torch.equal(state(tuner), state(twin))
    assert [row["rate"] for row in history] == [SHORT.rate(epoch) for epoch in range(4)]
    assert history[-1]["cross_entropy"] < history[0]["cross_entropy"]
    assert not tuner.training


def test_seed_decides_everything(clip):
    (a, first), (b, second), (c, _) = (trained(clip, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state(a), state(b)) and first == second
    assert not torch.equal(state(a), state(c))


def test_images_and_their_features_train_alike(clip):
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels, rows = torch.arange(8) % 4, torch.arange(8)
    tuners = [CoOp(clip, CLASSES, n_ctx=4) for _ in range(2)]
    for tuner, x in zip(tuners, (images, clip.encode_image(images)), strict=True):
        fit(tuner, [Batch(x, labels, rows)], SHORT)
    torch.testing.assert_close(state(tuners[0]), state(tuners[1]))


def test_bfloat16_stays_close_and_keeps_float32_parameters(clip):
    tuner, _ = trained(clip)
    half, _ = trained(clip, Recipe(**{**SHORT.__dict__, "precision": "bf16"}))
    assert state(half).dtype == torch.float32
    moved = (state(tuner) - state(CoOp(clip, CLASSES, n_ctx=4))).norm()
    assert 0 < (state(half) - state(tuner)).norm() < moved / 2  # torch versions: 0.19 to 0.27


class Pull(Regularizer):
    """Halves the logits and pulls two words together."""

    name = "pull"

    def logits(self, out):
        return out.logits / 2

    def penalty(self, out, encode_text):
        first, second = encode_text(["fox", "polar_bear"])
        return 1 - first @ second


def test_regularizers_change_logits_and_add_their_penalty(clip):
    seen = []
    tuner, history = trained(
        clip, regularizers=[Pull()], progress=lambda *where: seen.append(where)
    )
    assert set(history[0]) == {"epoch", "rate", "cross_entropy", "pull"}
    assert [where[:2] for where in seen[:4]] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    start = CoOp(clip, CLASSES, n_ctx=4)
    first, second = start.encode_text(["fox", "polar_bear"]).detach()
    assert seen[0][2]["pull"] == pytest.approx(float(1 - first @ second), abs=1e-6)
    assert not torch.equal(state(tuner), state(trained(clip)[0]))


def test_a_regularizer_that_does_nothing_does_nothing(clip):
    assert torch.equal(
        state(trained(clip, regularizers=[Regularizer()])[0]), state(trained(clip)[0])
    )


# -- what goes wrong


def test_nan_loss_names_the_step_and_restores_the_last_good_state(clip):
    features, labels = data()
    rows = torch.arange(5)
    good = Batch(features[0, :5], labels[:5], rows)
    bad = Batch(features[0, 5:] * float("nan"), labels[5:], rows + 5)
    tuner, healthy = CoOp(clip, CLASSES, n_ctx=4), CoOp(clip, CLASSES, n_ctx=4)
    with pytest.raises(TrainingDiverged, match=r"epoch 0, step 2 \(cross_entropy = nan\)"):
        fit(tuner, [good, good, bad], SHORT)
    fit(healthy, [good], Recipe(epochs=1, lr=0.05))
    assert torch.equal(state(tuner), state(healthy))
    assert not tuner.training


def test_exploding_update_is_noticed_at_the_end(clip):
    features, labels = data()
    batch = Batch(features[0], labels, torch.arange(10))
    tuner = CoOp(clip, CLASSES, n_ctx=4)
    before = state(tuner)
    with pytest.raises(TrainingDiverged, match="what is learned is not finite after epoch 0"):
        fit(tuner, [batch], Recipe(epochs=1, lr=1, warmup_lr=3e38))
    assert torch.equal(state(tuner), before)


def test_interrupt_finishes_the_step(clip):
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(epoch, step, losses):
        if (epoch, step) == (1, 1):
            os.kill(os.getpid(), signal.SIGINT)

    tuner, twin = CoOp(clip, CLASSES, n_ctx=4), CoOp(clip, CLASSES, n_ctx=4)
    with pytest.raises(KeyboardInterrupt, match="stopped after epoch 1, step 1"):
        fit(tuner, loader(), SHORT, progress=interrupt)
    states = []
    fit(twin, loader(), SHORT, progress=lambda *_: states.append(state(twin).clone()))
    assert torch.equal(state(tuner), states[4])
    assert signal.getsignal(signal.SIGINT) is handler and not tuner.training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: fit(ZeroShot(clip, CLASSES), loader()), "zero_shot learns nothing"),
        (lambda clip: fit(CoOp(clip, CLASSES), []), "yields no samples"),
        (
            lambda clip: fit(CoOp(clip, ClassSet(("cat", "dog"))), loader()),
            r"epoch 0, step 0: labels must be in 0\.\.1",
        ),
        (
            lambda clip: fit(
                CoOp(clip, CLASSES), DataLoader(TensorDataset(*data()[:1]), shuffle=True)
            ),
            "global random state",
        ),
    ],
)
def test_refuses_with_a_reason(clip, make, message):
    with pytest.raises(ValueError, match=message):
        make(clip)


# -- resumption


def interrupted(clip, path, **options):
    def interrupt(epoch, step, losses):
        if (epoch, step) == (2, 1):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trained(clip, checkpoint=path, progress=interrupt, **options)


def test_resumed_training_ends_with_the_same_bits(clip, tmp_path):
    path = tmp_path / "state.safetensors"
    whole, history = trained(clip, seed=5)
    interrupted(clip, path, seed=5)
    steps = []
    resumed, again = trained(
        clip, seed=5, checkpoint=path, progress=lambda epoch, step, _: steps.append((epoch, step))
    )
    assert torch.equal(state(resumed), state(whole)) and again == history
    assert steps[0] == (2, 0) and len(steps) == 6
    finished, same = trained(clip, seed=5, checkpoint=path)
    assert torch.equal(state(finished), state(whole)) and same == history


def test_augmented_images_resume_with_the_same_bits(clip, tmp_path):
    classes = ClassSet(("cat", "dog"))
    items = [Item(str(row), row % 2, classes.names[row % 2]) for row in range(6)]
    pixels = torch.randint(256, (6, 20, 20), generator=torch.Generator()).byte().numpy()
    dataset = Dataset("noise", classes, items, [], [], None, lambda item: pixels[int(item.path)])

    def train(**options):
        tuner = CoOp(clip, classes, n_ctx=4)
        augment = transforms.training(clip.preprocess)
        batches = image_loader(
            items, dataset, augment, batch_size=4, shuffle=True, generator=torch.Generator()
        )
        return tuner, fit(tuner, batches, SHORT, **options)

    def interrupt(epoch, step, losses):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    whole, history = train(seed=1)
    with pytest.raises(KeyboardInterrupt):
        train(seed=1, checkpoint=tmp_path / "state", progress=interrupt)
    resumed, again = train(seed=1, checkpoint=tmp_path / "state")
    assert torch.equal(state(resumed), state(whole)) and again == history
    assert not torch.equal(state(train(seed=2)[0]), state(whole))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seed": 6}, "seed was 0, is 6"), ({"regularizers": [Pull()]}, r"regularizers was \[\]")],
)
def test_checkpoint_of_another_run_is_refused(clip, tmp_path, options, message):
    path = tmp_path / "state.safetensors"
    interrupted(clip, path)
    with pytest.raises(ValueError, match=f"belongs to another run: {message}"):
        trained(clip, checkpoint=path, **options)


def test_damaged_checkpoint_is_refused(clip, tmp_path):
    path = tmp_path / "state.safetensors"
    interrupted(clip, path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="cannot be read"):
        trained(clip, checkpoint=path)

"""Predictions hold every sample once, in order, with the zero-shot twin of the same images."""

import pytest
import torch

from vlcal import distributed
from vlcal.clip import tiny_clip
from vlcal.prediction import predict
from vlcal.tuners import CoOp, ZeroShot
from vlcal.types import Batch, ClassSet, Predictions

CLASSES = ClassSet(("cat", "dog", "big tree"))


@pytest.fixture(scope="module")
def clip():
    torch.set_num_threads(1)
    return tiny_clip(0)


@pytest.fixture
def images():
    return torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def batches(images, order=range(7), size=3):
    return [Batch(images[r], LABELS[r], r) for r in torch.tensor(list(order)).split(size)]


@pytest.mark.parametrize("order", [range(7), [6, 2, 4, 0, 1, 5, 3]])
def test_samples_come_in_the_order_of_the_list(clip, images, order):
    tuner = CoOp(clip, CLASSES, n_ctx=4)
    predictions = predict(tuner, batches(images, order))
    out = tuner(images)
    torch.testing.assert_close(predictions.logits, out.logits.detach())
    torch.testing.assert_close(predictions.image_features, out.image_features)
    torch.testing.assert_close(predictions.text_features, out.text_features.detach())
    assert torch.equal(predictions.labels, LABELS)
    assert predictions.class_names == CLASSES.names
    assert predictions.logit_scale == clip.logit_scale
    assert predictions.zero_shot is None and not predictions.logits.requires_grad


def test_twin_is_the_untuned_model_on_the_same_images(clip, images, monkeypatch):
    tuner, zero_shot = CoOp(clip, CLASSES, n_ctx=4), ZeroShot(clip, CLASSES)
    expected = predict(zero_shot, batches(images))
    encoded, encode = [], clip.encode_image
    monkeypatch.setattr(clip, "encode_image", lambda x: encoded.append(len(x)) or encode(x))
    predictions = predict(tuner, batches(images), zero_shot)
    assert encoded == [3, 3, 1]
    torch.testing.assert_close(predictions.zero_shot.logits, expected.logits)
    assert not torch.equal(predictions.zero_shot.logits, predictions.logits)


def test_large_predictions_keep_features_only(clip, images):
    tuner = CoOp(clip, CLASSES, n_ctx=4)
    stored = predict(tuner, batches(images), max_logit_bytes=7 * 3 * 4)
    lean = predict(tuner, batches(images), max_logit_bytes=7 * 3 * 4 - 1)
    assert stored.logits is not None and lean.logits is None
    rebuilt = torch.cat([block for _, block in lean.blocks()])
    torch.testing.assert_close(rebuilt, stored.logits)


def test_logits_that_are_no_product_are_always_stored(clip, images):
    class Odd(ZeroShot):
        linear = False

    assert predict(Odd(clip, CLASSES), batches(images), max_logit_bytes=0).logits is not None


def test_text_features_are_computed_once_for_all_batches(clip, images, monkeypatch):
    tuner = CoOp(clip, CLASSES, n_ctx=4)
    calls, compute = [], tuner.class_features
    monkeypatch.setattr(tuner, "class_features", lambda: calls.append(1) or compute())
    predict(tuner, batches(images, size=1))
    assert len(calls) == 1


def test_prediction_happens_in_evaluation_mode_and_the_old_mode_returns(clip, images):
    modes = []

    class Watched(CoOp):
        def predict(self, images):
            modes.append(self.training)
            return super().predict(images)

    tuner = Watched(clip, CLASSES, n_ctx=4).train()
    predict(tuner, batches(images))
    assert modes == [False] * 3 and tuner.training


def test_predictions_survive_a_file(clip, images, tmp_path):
    predictions = predict(CoOp(clip, CLASSES), batches(images), ZeroShot(clip, CLASSES))
    predictions.save(tmp_path / "p.safetensors")
    again = Predictions.load(tmp_path / "p.safetensors")
    assert torch.equal(again.logits, predictions.logits)
    assert torch.equal(again.zero_shot.image_features, predictions.zero_shot.image_features)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t, z, x: predict(t, batches(x)[:0]), "no samples"),
        (lambda t, z, x: predict(t, batches(x)[1:]), "visit every sample once, got 4"),
        (lambda t, z, x: predict(t, batches(x) + batches(x)[:1]), "10 with 3 repeated"),
        (lambda t, z, x: predict(t, batches(x), z), "the 3 classes of the tuner in the same order"),
    ],
)
def test_refuses_with_a_reason(clip, images, make, message):
    other = ZeroShot(clip, ClassSet(("dog", "cat", "big tree")))
    with pytest.raises(ValueError, match=message):
        make(CoOp(clip, CLASSES), other, images)


def test_one_process_is_the_main_one_and_gathers_itself():
    rows = torch.arange(3)
    assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather(rows) is rows and distributed.sum_(rows) is rows
    distributed.barrier()
    assert distributed.setup() == torch.device("cpu")

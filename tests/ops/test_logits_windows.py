"""Many classes are packed a window at a time: that must not be seen in any result."""

import pytest
import torch

from tests.ops.cases import rows
from vlcal import _native
from vlcal.ops import calibrated_softmax, cosine_cross_entropy, logit_statistics

DIM = 4096  # of so many values, a window holds 504 classes
CLASSES = 1100  # two windows and a part of one

pytestmark = pytest.mark.skipif(bool(_native.missing()), reason=str(_native.missing()))


@pytest.fixture(scope="module")
def text():
    return rows(CLASSES, DIM, torch.float32, 1)


def same(a, b):
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [1, 33, 500])
def test_windows_give_the_bits_of_all_classes_at_once(text, n, threads):
    image, labels = rows(n, DIM, torch.float32, 2), torch.arange(n) * 17 % CLASSES
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seen = calibrated_softmax(image, text, 100.0, labels=labels, k=7, backend="native")
    finally:
        torch.set_num_threads(before)
    # a factor for the predicted class needs every product of a row, hence all classes
    ones = torch.ones(CLASSES)
    whole = calibrated_softmax(
        image, text, 100.0, predicted_scale=ones, labels=labels, k=7, backend="native"
    )
    assert same(seen, whole)
    oracle = calibrated_softmax(
        image.double(), text.double(), 100.0, labels=labels, k=7, backend="reference"
    )
    assert torch.equal(seen.topk_index, oracle.topk_index)
    assert (seen.confidence - oracle.confidence).abs().max() < 3e-5


def test_images_of_several_blocks(text):
    image, text = rows(4200, DIM, torch.float32, 3), text[:600]  # blocks are of 4,096
    seen = calibrated_softmax(image, text, 50.0, backend="native")
    ends = [slice(0, 40), slice(4080, 4200)]
    for part in ends:
        alone = calibrated_softmax(image[part], text, 50.0, backend="native")
        assert same([x if x is None else x[part] for x in seen], alone)
    image[4199, 5] = torch.nan
    with pytest.raises(ValueError, match="4199"):
        calibrated_softmax(image, text, 50.0, backend="native")


def test_two_models_of_different_width(text):
    image, other_image = rows(40, DIM, torch.float32, 4), rows(40, 24, torch.float32, 5)
    other = (other_image, rows(CLASSES, 24, torch.float32, 6))
    for pair in [(image, text, other), (*other, (image, text))]:
        seen = logit_statistics(pair[0], pair[1], 10.0, pair[2], backend="native")
        double = [x.double() for x in (pair[0], pair[1], *pair[2])]
        oracle = logit_statistics(*double[:2], 10.0, (double[2], double[3]), backend="reference")
        assert torch.equal(seen.argmax, oracle.argmax)
        for name in ("max", "min", "mean_difference"):
            torch.testing.assert_close(
                getattr(seen, name).double(), getattr(oracle, name), rtol=1e-5, atol=1e-4
            )


def test_equal_classes_of_two_windows_go_to_the_lowest_index(text):
    text = text.clone()
    text[1050] = text[30]
    out = calibrated_softmax(text[[30, 1050]], text, 100.0, k=2, backend="native")
    assert out.topk_index.tolist() == [[30, 1050], [30, 1050]]


def test_a_loss_alone_is_that_of_a_step(text):
    image, labels = rows(40, DIM, torch.float32, 7), torch.arange(40) * 27 % CLASSES
    alone = cosine_cross_entropy(image, text, labels, 20.0, backend="native")
    step = cosine_cross_entropy(
        image.clone().requires_grad_(), text, labels, 20.0, backend="native"
    )
    assert torch.equal(alone, step.detach())


def test_a_bad_class_of_the_last_window_is_refused(text):
    text = text.clone()
    text[1099, 7] = torch.inf
    with pytest.raises(ValueError, match="finite"):
        calibrated_softmax(rows(3, DIM, torch.float32, 8), text, 100.0, backend="native")

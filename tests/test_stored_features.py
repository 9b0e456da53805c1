"""Image features in the place of images: every sample once, views mixed."""

import pytest
import torch

from vlcal.clip import tiny_clip
from vlcal.tuners import FeatureBatches, encode_views
from vlcal.types import Batch


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


def batches(images, labels, order=range(8), size=3):
    rows = torch.tensor(list(order)).split(size)
    return [Batch(images[r], labels[r], r) for r in rows]


def test_views_are_in_the_order_of_the_list(clip, images, labels):
    features, found = encode_views(clip, batches(images, labels, reversed(range(8))), views=2)
    assert features.shape == (2, 8, 16) and torch.equal(found, labels)
    torch.testing.assert_close(features[1], clip.encode_image(images))


def test_views_refuse_a_loader_that_misses_samples(clip, images, labels):
    with pytest.raises(ValueError, match="must visit every sample once, got 7"):
        encode_views(clip, batches(images, labels, range(1, 8)))
    with pytest.raises(ValueError, match="8 with 1 repeated"):
        encode_views(clip, batches(images, labels, [0, 0, 1, 2, 3, 4, 5, 6]))


def test_feature_batches_visit_everything_and_mix_views():
    features = torch.arange(2 * 7 * 3).view(2, 7, 3).float()
    loader = FeatureBatches(features, torch.arange(7), 3)
    epochs = [list(loader) for _ in range(2)]
    for epoch in epochs:
        assert [len(batch.labels) for batch in epoch] == [3, 3, 1] and len(loader) == 3
        assert sorted(torch.cat([batch.labels for batch in epoch]).tolist()) == list(range(7))
        rows = torch.cat([batch.images for batch in epoch])
        order = torch.cat([batch.indices for batch in epoch])
        views = (rows[:, 0] - 3 * order) / 21
        assert set(views.tolist()) == {0.0, 1.0}
    assert not torch.equal(epochs[0][0].indices, epochs[1][0].indices)


@pytest.mark.parametrize(("n", "expected"), [(7, [3, 3]), (2, [2]), (6, [3, 3])])
def test_drop_last_keeps_an_only_batch(n, expected):
    loader = FeatureBatches(torch.zeros(n, 4), torch.zeros(n).long(), 3, drop_last=True)
    assert [len(batch.labels) for batch in loader] == expected and len(loader) == len(expected)


def test_feature_batches_refuse_other_shapes():
    with pytest.raises(ValueError, match="with N = 3 labels"):
        FeatureBatches(torch.zeros(2, 4), torch.zeros(3).long(), 3)

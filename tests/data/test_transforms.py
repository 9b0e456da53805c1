"""Evaluation equals open_clip; training depends on its generator alone, whatever the workers."""

import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vlcal.data import Dataset, ImageList, Item, icons, loader, transforms
from vlcal.types import Batch, ClassSet

pytest.importorskip("torchvision")
Image = pytest.importorskip("PIL.Image")
CLIP = SimpleNamespace(
    size=32,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    interpolation="bicubic",
    resize_mode="shortest",
)


def noise(height, width, mode="RGB"):
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (40, 77), (90, 33), (7, 5), (33, 32)])
def test_evaluation_equals_open_clip(size, resize_mode, mode, interpolation):
    open_clip = pytest.importorskip("open_clip")
    how = {"interpolation": interpolation, "resize_mode": resize_mode}
    theirs = open_clip.transform.image_transform(
        32, is_train=False, mean=CLIP.mean, std=CLIP.std, **how
    )
    preprocess = SimpleNamespace(**(vars(CLIP) | how))
    image = noise(*size, mode)
    assert torch.equal(transforms.evaluation(preprocess)(image), theirs(image))
    assert torch.equal(transforms.evaluation(preprocess)(np.asarray(image)), theirs(image))


def test_grey_icons_become_three_equal_channels():
    data = icons()
    plain = {"mean": (0.5,) * 3, "std": (0.35,) * 3, "interpolation": "bilinear"}
    plain = SimpleNamespace(**(vars(CLIP) | plain))
    pixels = data.read(data.test[0])
    out = transforms.evaluation(plain)(pixels)
    expected = (torch.from_numpy(pixels.copy()).float() / 255 - 0.5) / 0.35
    assert torch.allclose(out, expected.expand(3, 32, 32), atol=1e-6)


def test_the_same_generator_gives_the_same_image():
    transform, image = transforms.training(CLIP), noise(50, 60)
    draw = lambda seed: transform(image, torch.Generator().manual_seed(seed))  # noqa: E731
    assert draw(0).shape == (3, 32, 32)
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_crops_have_the_promised_area_ratio_and_place():
    transform, generator = transforms.training(CLIP), torch.Generator().manual_seed(0)
    boxes = torch.tensor([transform.crop(300, 300, generator) for _ in range(4000)]).double()
    top, left, height, width = boxes.T
    share, ratio = height * width / 90_000, width / height
    assert share.min() > 0.075 and share.max() <= 1
    assert ratio.min() > 0.74 and ratio.max() < 1.35
    assert share.min() < 0.10 and share.max() > 0.7
    assert bool(((top >= 0) & (left >= 0)).all())
    assert bool(((top + height <= 300) & (left + width <= 300)).all())
    # log-uniform, so that wide and tall are equally likely
    assert abs(float(ratio.log().mean())) < 0.01


def test_crops_follow_the_distribution_of_torchvision():
    v1 = pytest.importorskip("torchvision.transforms").RandomResizedCrop
    transform, generator = transforms.training(CLIP), torch.Generator().manual_seed(0)
    ours = torch.tensor([transform.crop(40, 60, generator) for _ in range(3000)]).double()
    image = noise(40, 60)
    theirs = torch.tensor(
        [v1.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    ).double()
    standard_error = ours.std(0) * math.sqrt(2 / 3000)
    assert bool(((ours.mean(0) - theirs.mean(0)).abs() < 4 * standard_error).all())


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 200, (0, 93, 10, 13)), (200, 9, (94, 0, 12, 9))]
)
def test_extreme_shapes_fall_back_to_the_center(height, width, box):
    transform = transforms.training(CLIP, scale=(0.9, 1.0))
    assert transform.crop(height, width, torch.Generator().manual_seed(0)) == box


@pytest.mark.parametrize(("flip", "expected"), [(0.0, False), (1.0, True)])
def test_flip(flip, expected):
    image = noise(32, 32)
    transform = transforms.training(CLIP, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=flip)
    out = transform(image, torch.Generator().manual_seed(0))
    plain = transforms.evaluation(CLIP)(image)
    assert torch.equal(out, plain.flip(-1) if expected else plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"mean": (0.5,)}, "mean and std must be three numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "std positive"),
        ({"interpolation": "lanczos"}, "interpolation must be one of .*, got 'lanczos'"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        transforms.evaluation(SimpleNamespace(**(vars(CLIP) | change)))


def test_training_needs_a_generator():
    with pytest.raises(ValueError, match="needs a generator, got None"):
        transforms.training(CLIP)(noise(5, 5))


def read_noise(item):
    return np.asarray(noise(20 + item.label, 30))


@pytest.fixture
def data():
    items = [Item(f"{i}.png", i % 5, "abcde"[i % 5]) for i in range(23)]
    return Dataset("noise", ClassSet(tuple("abcde")), items, [], items, None, read_noise)


def passes(data, workers, seed=0, n=2):
    generator = torch.Generator().manual_seed(seed)
    batches = loader(
        data.train,
        data,
        transforms.training(CLIP),
        batch_size=5,
        shuffle=True,
        generator=generator,
        drop_last=True,
        workers=workers,
    )
    return [batch for _ in range(n) for batch in batches]


def test_workers_change_nothing(data):
    alone, shared = passes(data, 0), passes(data, 2)
    assert len(alone) == len(shared) == 8
    for a, b in zip(alone, shared, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_every_pass_is_new_and_every_seed_repeats(data):
    first, second = passes(data, 0), passes(data, 0)
    assert torch.equal(first[3].images, second[3].images)
    assert not torch.equal(first[0].indices, first[4].indices)
    assert not torch.equal(first[0].images, passes(data, 0, seed=1)[0].images)


def test_an_image_is_augmented_anew_in_every_pass(data):
    first, second = (
        {
            int(i): image
            for batch in half
            for i, image in zip(batch.indices, batch.images, strict=True)
        }
        for half in (passes(data, 0)[:4], passes(data, 0)[4:])
    )
    shared = set(first) & set(second)
    assert shared and not any(torch.equal(first[i], second[i]) for i in shared)


def test_the_global_stream_is_left_alone(data):
    before = torch.get_rng_state()
    passes(data, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_keeps_order_and_every_item(data):
    batches = list(loader(data.test, data, transforms.evaluation(CLIP), batch_size=10))
    assert [len(batch.labels) for batch in batches] == [10, 10, 3]
    assert isinstance(batches[0], Batch) and batches[0].images.shape == (10, 3, 32, 32)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(23))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [i % 5 for i in range(23)]


def test_the_only_batch_is_never_dropped(data):
    evaluation = transforms.evaluation(CLIP)
    assert len(loader(data.train[:3], data, evaluation, batch_size=5, drop_last=True)) == 1
    assert len(loader(data.train[:8], data, evaluation, batch_size=5, drop_last=True)) == 1


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        (0, {}, "needs at least one item, got an empty list of noise"),
        (3, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (3, {"shuffle": True}, "need a generator, got None"),
        (3, {"transform": transforms.training(CLIP)}, "need a generator, got None"),
    ],
)
def test_loader_refuses(data, items, options, message):
    with pytest.raises(ValueError, match=message):
        loader(data.train[:items], data, **({"transform": transforms.evaluation(CLIP)} | options))


def test_image_list_takes_plain_indices(data):
    image, label, index = ImageList(data.test, data.read, transforms.evaluation(CLIP))[7]
    assert (tuple(image.shape), label, index) == ((3, 32, 32), 2, 7)


def test_bundled_dataset_and_transforms_can_be_pickled():
    transform = pickle.loads(pickle.dumps(transforms.training(CLIP)))
    assert transform == transforms.training(CLIP)
    assert pickle.loads(pickle.dumps(icons())).test == icons().test

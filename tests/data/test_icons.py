"""The bundled icons: enough of every class in every list, and no picture in two of them."""

from collections import Counter

import numpy as np
import pytest

from vlcal.data import Item, base_new, icons
from vlcal.data.icons import read_icon


@pytest.fixture(scope="module")
def data():
    return icons()


def test_sizes_are_those_of_the_docstring(data):
    assert (len(data.train), len(data.val), len(data.test)) == (2666, 938, 1422)
    assert len(data.classes) == 139
    assert data.classes.prompts()[0] == "an icon of a align left."


@pytest.mark.parametrize(("part", "least"), [("train", 16), ("val", 4), ("test", 4)])
def test_every_class_has_enough(data, part, least):
    counts = Counter(item.label for item in getattr(data, part))
    assert set(counts) == set(range(139))
    assert min(counts.values()) >= least


def test_every_row_is_used_once(data):
    paths = [item.path for item in data.train + data.val + data.test]
    assert len(set(paths)) == len(paths) == 5026


def test_no_picture_of_a_class_is_in_two_lists(data):
    seen = [
        {(item.label, data.read(item).tobytes()) for item in part}
        for part in (data.train, data.val, data.test)
    ]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_most_test_images_come_from_families_without_train_images(data):
    from vlcal.assets import asset

    families = np.load(asset("icons139.npz"), allow_pickle=False)["families"]
    of = lambda part: [families[int(item.path.split("#")[1])] for item in part]  # noqa: E731
    train = set(of(data.train))
    unseen = [family for family in of(data.test) if family not in train]
    assert len(set(unseen)) == 17
    assert round(len(unseen) / len(data.test), 2) == 0.86


def test_pixels_are_grey_and_read_only(data):
    pixels = data.read(data.test[0])
    assert pixels.shape == (32, 32) and pixels.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        pixels[0, 0] = 1


def test_halves(data):
    base, new = base_new(data)
    assert (len(base.classes), len(new.classes)) == (70, 69)


@pytest.mark.parametrize("path", ["icons139.npz#5026", "icons139.npz#-1", "icons139.npz", "x#1"])
def test_refuses_other_paths(path):
    with pytest.raises(ValueError, match=r"paths are 'icons139\.npz#<row>'"):
        read_icon(Item(path, 0, "x"))

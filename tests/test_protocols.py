"""Base-to-new: who is tuned on, who is measured, and what a content hash sees."""

from dataclasses import replace

import pytest

from vlcal.data.items import Dataset, Item
from vlcal.protocols import base_to_new
from vlcal.types import ClassSet


def toy(n_classes=5, n=8):
    parts = (
        [Item(f"{part}/{c}/{i}.png", c, f"class {c}") for c in range(n_classes) for i in range(n)]
        for part in ("train", "val", "test")
    )
    names = ClassSet(tuple(f"class {c}" for c in range(n_classes)))
    return Dataset("toy", names, *parts, None, read=lambda item: None)


def test_base_is_the_first_half_rounded_up_and_new_is_the_rest():
    task = base_to_new(toy(5), shots=2, seed=1)
    assert task.tuning.classes.names == ("class 0", "class 1", "class 2")
    assert task.tests["new"].classes.names == ("class 3", "class 4")
    assert len(task.tuning.train) == 6
    assert len(task.tuning.val) == 6
    assert {item.label for item in task.tests["new"].test} == {0, 1}
    assert len(task.tests["base"].test) == 24


def test_same_seed_same_content_other_seed_other_content():
    assert base_to_new(toy(), 2, 1).content() == base_to_new(toy(), 2, 1).content()
    assert base_to_new(toy(), 2, 1).content() != base_to_new(toy(), 2, 2).content()


def test_content_sees_the_template():
    other = replace(toy(), classes=replace(toy().classes, template="an icon of a {}."))
    assert base_to_new(other, 2, 1).content() != base_to_new(toy(), 2, 1).content()


def test_refuses_a_dataset_without_train_images():
    with pytest.raises(ValueError, match="toy needs train images, it lists none"):
        base_to_new(replace(toy(), train=[]))

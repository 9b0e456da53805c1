import json

import numpy as np
import pytest

from vlcal.data import Dataset, Item
from vlcal.types import ClassSet


@pytest.fixture
def picture(tmp_path):
    """Writes a small noise image under tmp_path/images and returns its relative path."""
    image = pytest.importorskip("PIL.Image")

    def write(path, size=(20, 16), seed=0):
        target = tmp_path / "images" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        image.fromarray(pixels).save(target)
        return path

    return write


@pytest.fixture
def split_file(tmp_path):
    """Writes a split file from a dictionary, bytes or text and returns its path."""

    def write(content):
        path = tmp_path / "split_zhou_Toy.json"
        if isinstance(content, dict):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def toy():
    """Five classes that appear as 2, 0, 4, 3, 1; class 3 has one item a list, the others more."""
    order, names = [2, 0, 4, 3, 1], ("ant", "bee", "cat", "dog", "elk")

    def items(part, count):
        return [
            Item(f"{part}/{label}-{i}.png", label, names[label])
            for label in order
            for i in range(1 if label == 3 else count)
        ]

    return Dataset(
        "toy",
        ClassSet(names),
        items("train", 3),
        items("val", 6),
        items("test", 2),
        None,
        lambda item: np.full((8, 8), item.label, np.uint8),
    )

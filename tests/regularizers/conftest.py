"""A tiny CLIP, a small vocabulary, and a feature cache that ends with the test."""

import pytest
import torch

from vlcal.clip import tiny_clip
from vlcal.regularizers import Setup
from vlcal.tuners import CoOp
from vlcal.types import ClassSet

BASE = ClassSet(("cat", "big_heavy airplane", "dog", "tree"))
WORDS = [
    *("cat", "wild_cat", "cattle", "fox", "horse", "sheep", "goat", "house", "tower", "bridge"),
    *("river", "lake", "sea", "moon", "star", "cup", "fork", "spoon", "plate", "table", "chair"),
    *("lamp", "door", "window", "road", "train", "bus", "bike", "boat", "ship", "tree-house"),
]


@pytest.fixture(scope="session")
def clip():
    torch.set_num_threads(1)
    return tiny_clip(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLCAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def setup(clip):
    tuner = CoOp(clip, BASE, n_ctx=4)
    return Setup(clip, BASE, tuner.encode_text)

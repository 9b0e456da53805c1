"""A tiny model and a batch, in float64 where numbers are compared exactly."""

import pytest
import torch

from vlcal.clip import tiny_clip
from vlcal.types import ClassSet


@pytest.fixture(scope="module")
def clip():
    torch.set_num_threads(1)
    return tiny_clip(0)


@pytest.fixture(scope="module")
def exact():
    torch.set_num_threads(1)
    return tiny_clip(0).double()


@pytest.fixture
def base():
    return ClassSet(("cat", "big_heavy airplane", "dog", "tree"))


@pytest.fixture
def images():
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 3, 0, 1])

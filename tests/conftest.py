"""Fixed seeds, NaN-filled uninitialized memory, one thread unless a test asks for more."""

import os
import random

import numpy as np
import pytest
import torch

# read by Triton when kernels are defined: without a GPU they run in its interpreter
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def _count_by_tensors():
    """Let the interpreters up to Triton 3.6 count loops that end at a tensor with NumPy 2.4.

    They convert an array of one element to an integer, which NumPy no longer does.
    """
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    patch = interpreter._patch_lang_tensor

    def patched(tensor, *scope):
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


_count_by_tensors()

# small inputs gain nothing from threads, and spinning ones slow a busy machine down
torch.set_num_threads(1)

_EMPTY = {name: getattr(torch, name) for name in ("empty", "empty_like")}


@pytest.fixture(autouse=True)
def fixed_seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill what `torch.empty` returns with NaN or a huge integer: unwritten elements fail."""

    def poisoned(name):
        def make(*args, **kwargs):
            tensor = _EMPTY[name](*args, **kwargs)
            if tensor.device.type == "meta" or type(tensor) is not torch.Tensor:
                return tensor
            if tensor.is_floating_point():
                tensor.detach().fill_(float("nan"))  # it may be a leaf that requires a gradient
            elif tensor.dtype == torch.int64:
                tensor.fill_(torch.iinfo(tensor.dtype).min)
            return tensor

        return make

    import vlcal._native

    for name in _EMPTY:
        monkeypatch.setattr(vlcal._native.torch, name, poisoned(name))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)

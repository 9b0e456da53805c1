"""What logits, bins and densities wait for on a GPU: nothing while a graph is captured."""

import pytest
import torch

from tests.ops.fake_cuda import fake_cuda
from tests.ops.gpu_calls import CALLS, ONCE
from vlcal.ops import _triton, bin_statistics

pytestmark = pytest.mark.skipif(_triton.missing() is not None, reason=str(_triton.missing()))


@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits_while_a_graph_is_captured(name):
    with fake_cuda(capturing=True) as gpu:
        CALLS[name](gpu.device)
        assert gpu.operations or gpu.kernels


@pytest.mark.parametrize("name", ONCE)
def test_waits_once(name):
    with fake_cuda() as gpu:
        ONCE[name](gpu.device)
        assert len(gpu.waits) == 1


@pytest.mark.parametrize(
    ("version", "refused"), [("3.5.1", True), ("3.6.0", False), ("4.0", False)]
)
def test_an_older_triton_is_refused_with_a_sentence(monkeypatch, version, refused):
    monkeypatch.setattr(_triton.triton, "__version__", version)
    monkeypatch.setattr(_triton, "_INTERPRETED", True)
    why = f"the kernels need triton 3.6 or later, got {version}" if refused else None
    assert _triton.missing() == why
    if refused:
        with pytest.raises(NotImplementedError, match=f"triton: {why}"):
            bin_statistics(torch.ones(3), torch.ones(3) > 0, backend="triton")

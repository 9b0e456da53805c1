"""What logits, bins and densities wait for on a GPU: nothing while a graph is captured."""

import pytest

from tests.ops.fake_cuda import fake_cuda
from tests.ops.gpu_calls import CALLS, ONCE
from vlcal.ops import _triton

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

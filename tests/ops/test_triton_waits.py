"""What logits, bins and densities wait for on a GPU: nothing while a graph is captured."""

import pytest
import torch

from tests.ops.fake_cuda import fake_cuda
from vlcal import ops
from vlcal.ops import _triton, cross_entropy

pytestmark = pytest.mark.skipif(_triton.missing() is not None, reason=str(_triton.missing()))

N, C, D = 5000, 300, 100


def made(device, *shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device=device)


def softmax(device, dtype=torch.float32, scale=None, n=N, **options):
    image, text = made(device, n, D, dtype=dtype), made(device, C, D)
    labels = made(device, n, dtype=torch.int32)
    scale = made(device) if scale is None else scale
    return ops.calibrated_softmax(image, text, scale, labels=labels, **options)


def softmax_of_everything(device):
    scales = {"row_scale": made(device, N), "predicted_scale": made(device, C)}
    return softmax(device, torch.float16, precision="fast", k=5, **scales)


def statistics(device, n=N, **options):
    pair = made(device, n, D), made(device, C, D)
    other = made(device, 2 * n, 7)[::2], made(device, 9, C).T
    return ops.logit_statistics(*pair, 100.0, (other[0], other[1][:, :7]), **options)


def loss(device, n=N, scale=None, **options):
    image, text = made(device, n, D), made(device, C, D)
    labels = made(device, n, dtype=torch.int64)
    scale = made(device) if scale is None else scale
    return ops.cosine_cross_entropy(image, text, labels, scale, **options)


def gradients(device, scale, kind=cross_entropy._backward):
    image, text = made(device, N, D, dtype=torch.bfloat16), made(device, C, D)
    labels = made(device, N, dtype=torch.int64)
    args = image, text, labels, scale, True, True, scale.is_cuda, "", "accurate"
    if kind is cross_entropy._backward:
        return kind(made(device).expand(N), *args)
    total, *parts = kind(*args)
    return [cross_entropy._scaled_gradient(torch.ones_like(total), part) for part in parts[:2]]


def stored(device, dtype=torch.float32, n=N):
    labels = made(device, n, dtype=torch.int64)
    return ops.softmax_statistics(made(device, C, n, dtype=dtype).T, labels)


def density(device, bandwidth):
    return ops.kernel_density(made(device, N, 2), made(device, C, 2).half(), bandwidth)


def bins(device, op=ops.bin_statistics, dtype=torch.float32, n=N, **options):
    return op(made(device, 2 * n, dtype=dtype)[::2], made(device, n, dtype=torch.bool), **options)


def groups(device, n_groups):
    args = made(device, N), made(device, N, dtype=torch.bool), n_groups
    return ops.group_statistics(made(device, N, dtype=torch.int32), *args)


def classes(device, **options):
    labels = made(device, N, dtype=torch.int64)
    return ops.classwise_statistics(made(device, C, N).T, labels, **options)


MASS = {"op": ops.equal_mass_statistics}
# those that wait once, to look at a count of bad rows
ONCE = {
    "stored logits": stored,
    "stored half logits": lambda device: stored(device, torch.bfloat16),
    "no stored logits": lambda device: stored(device, n=0),
    "bins": bins,
    "many bins": lambda device: bins(device, n_bins=100, closed="left"),
    "bins of doubles": lambda device: bins(device, dtype=torch.float64),
    "no samples": lambda device: bins(device, n=0),
    "groups": lambda device: groups(device, 10),
    "many groups": lambda device: groups(device, 1000),
    "classes": lambda device: classes(device, n_bins=20),
    "equal mass": lambda device: bins(device, **MASS),
    "equal mass of halves": lambda device: bins(device, **MASS, dtype=torch.float16),
    "equal mass, ties in order": lambda device: bins(device, **MASS, ties="order"),
    "equal mass, many bins": lambda device: bins(device, **MASS, n_bins=100),
    "equal mass, one bin": lambda device: bins(device, **MASS, n_bins=1),
    "equal mass of nothing": lambda device: bins(device, **MASS, n=0),
}
CALLS = ONCE | {
    "softmax": softmax,
    "softmax of everything": softmax_of_everything,
    "softmax under a number": lambda device: softmax(device, scale=100.0, k=40),
    "softmax of nothing": lambda device: softmax(device, n=0, k=3),
    "statistics": statistics,
    "fast statistics": lambda device: statistics(device, precision="fast"),
    "statistics of nothing": lambda device: statistics(device, n=0),
    "mean loss": loss,
    "losses under a number": lambda device: loss(device, scale=100.0, reduction="none"),
    "loss of nothing": lambda device: loss(device, n=0, reduction="sum"),
    "gradients": lambda device: gradients(device, made(device)),
    "gradients under a number": lambda device: gradients(device, torch.tensor(9.0)),
    "gradients of the sum": lambda device: gradients(
        device, torch.tensor(9.0), cross_entropy._cross_entropy_sum
    ),
    "density": lambda device: density(device, made(device, 2)),
    "density of numbers": lambda device: density(device, [0.5, 2.0]),
    "density of a tensor on the CPU": lambda device: density(device, torch.ones(2)),
}


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


@pytest.mark.parametrize("n_bins", [15, 64])
def test_equal_mass_takes_the_memory_it_says(n_bins):
    with fake_cuda() as gpu:
        confidence, correct = made(gpu.device, 10**8), made(gpu.device, 10**8, dtype=torch.bool)
        gpu.peak = before = gpu.live
        ops.equal_mass_statistics(confidence, correct, n_bins)
        assert gpu.peak - before < n_bins * 6 << 20
        # nothing is added up by atomic operations that queue
        assert not {"index_add_", "scatter_add_", "bincount"} & set(gpu.operations)

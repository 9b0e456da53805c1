"""The GPU that is not there sees what would wait, and the searches do so only where they say."""

import pytest
import torch

from tests.ops.fake_cuda import Waits, fake_cuda
from tests.ops.gpu_calls import SEARCHES
from vlcal.ops import SearchIndex, _triton
from vlcal.ops._triton.search_rows import place

pytest.importorskip("triton")

WAITING = {
    "item": lambda x: x[0, 0].item(),
    "bool": lambda x: bool((x > 0).all()),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "assignment by a mask": lambda x: x.__setitem__(x > 0, torch.ones(3, device=x.device)),
    "unique": lambda x: x.unique(),
    "copy to the CPU": lambda x: x.cpu(),
    "copy from the CPU": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "index on the CPU": lambda x: x[torch.tensor([0, 1])],
    "synchronize": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("what", WAITING)
def test_what_waits_is_refused_while_a_graph_is_captured(what):
    with fake_cuda(capturing=True) as gpu:
        x = torch.empty(4, 5, device=gpu.device)
        with pytest.raises(Waits):
            WAITING[what](x)
    assert len(gpu.waits) == 1


def test_work_on_the_device_is_counted_and_does_not_wait():
    with fake_cuda(capturing=True) as gpu:
        x = torch.zeros(256, 4, device=gpu.device)
        y = torch.where(x > 1, x, 0.0)[::2].T.double() * 0.5
        assert gpu.operations == ["zeros", "gt", "scalar_tensor", "where", "_to_copy", "mul"]
        assert y.shape == (4, 128)
        # x and y; at most x and what is halved, before and after
        assert gpu.live == 2 * 4096
        assert gpu.peak == 3 * 4096


def test_launches_are_written_down_and_keep_to_the_device_of_their_tensors():
    with fake_cuda() as gpu:
        rows = torch.empty(100, 70, device=gpu.device)
        center = torch.empty(70, dtype=torch.float64, device=gpu.device)
        with pytest.raises(AssertionError, match="rows_ptr is on cuda:1, the launch on cuda:0"):
            place(rows, center, center[0], 128, False)
        with torch.cuda.device_of(rows):
            place(rows, center, center[0], 128, False)
    (launch,) = gpu.launches
    assert launch.kernel == "place_kernel"
    assert launch.args["stride_n"] == 70
    assert launch.options == {"num_warps": 4}
    assert gpu.current == 0


# the searches


@pytest.mark.parametrize("name", SEARCHES)
def test_search_waits_once_a_matrix_and_never_while_captured(name):
    for capturing, waits in ((False, 2), (True, 0)):
        with fake_cuda(capturing=capturing) as gpu:
            SEARCHES[name](gpu.device)
        assert len(gpu.waits) == waits, gpu.waits
        assert gpu.launches


@pytest.mark.parametrize("name", SEARCHES)
def test_what_evaluates_in_float64_is_launched_without_fused_additions(name):
    with fake_cuda() as gpu:
        SEARCHES[name](gpu.device)
    exact = {"rerank_kernel", "scan_kernel", "dots_kernel"}
    fused = [
        launch.options.get("enable_fp_fusion") for launch in gpu.launches if launch.kernel in exact
    ]
    assert fused
    assert not any(one is not False for one in fused)


@pytest.mark.parametrize("capturing", [False, True])
def test_index_waits_once_a_search_and_never_while_captured(capturing):
    with fake_cuda(capturing=capturing) as gpu:
        index = SearchIndex(torch.empty(100_000, 512, device=gpu.device))
        assert len(gpu.waits) == (0 if capturing else 1)
        found = index.knn(torch.empty(100, 512, device=gpu.device), 10)
        assert found.distance.shape == found.index.shape == (100, 10)
        assert found.distance.device == gpu.device
    assert len(gpu.waits) == (0 if capturing else 2)
    # the second at the end, when the device has all of its work
    assert capturing or gpu.launched_before_waits == [0, len(gpu.launches)]


def test_a_search_of_an_index_takes_few_launches():
    # each costs a few microseconds, of the quarter of a millisecond that reading the keys takes
    with fake_cuda(capturing=True) as gpu:
        index = SearchIndex(torch.empty(1_000_000, 512, device=gpu.device))
        queries = torch.empty(100, 512, device=gpu.device)
        before = len(gpu.launches) + len(gpu.operations)
        index.knn(queries, 10)
        assert len(gpu.launches) + len(gpu.operations) - before <= 27


def test_memory_beside_a_million_keys():
    # 2 D + 24 bytes a key, as SearchIndex says; of a search two biases a key, and lists of queries
    million, queries = 1_000_000, 1000
    with fake_cuda(capturing=True) as gpu:
        keys = torch.empty(million, 512, device=gpu.device)
        before = gpu.live
        index = SearchIndex(keys)
        assert gpu.live - before <= million * (2 * 512 + 24) + 80_000
        before = gpu.peak = gpu.live
        index.knn(torch.empty(queries, 512, device=gpu.device), 10)
        assert gpu.peak - before <= 80e6


@pytest.mark.parametrize(("shared", "stages"), [(227, 4), (163, 3), (99, 2)])
def test_screens_take_the_stages_that_fit(shared, stages):
    # of Hopper, of a large and of a small Ampere card; others before and after leave no trace
    with fake_cuda(shared=shared << 10) as gpu:
        SearchIndex(torch.empty(9000, 64, device=gpu.device)).knn(
            torch.empty(40, 64, device=gpu.device), 3
        )
    screens = [launch for launch in gpu.launches if launch.kernel == "screen_kernel"]
    assert {launch.options["num_stages"] for launch in screens} == {stages}
    assert _triton.interpreted() or torch.cuda.is_available()

"""What the screens of the GPU search promise (`search.Screens`): those in Triton and in CUDA C++.

Without a GPU the ones in Triton run in its interpreter, on the small sizes.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.oracle import device_of
from vlcal import _cuda, ops
from vlcal.ops import _cuda_search, _triton
from vlcal.ops._triton import search as gpu
from vlcal.ops._triton import search_screen
from vlcal.ops._triton.search_rows import GAP_KEYS

DEVICE = device_of("triton")
SMALL = [(1, 1, 64), (1, 64, 64), (3, 255, 128), (65, 257, 192), (128, 256, 64), (70, 1000, 64)]
LARGE = [
    *((129, 257, 576), (300, 10_001, 512), (5, 100_003, 512), (4100, 30_000, 64)),
    *((1000, 4097, 576), (64, 3000, 1024), (33, 1025, 2048), (2, 300_000, 320)),
]
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device was found")
SIZES = [*SMALL, *(pytest.param(*size, marks=needs_gpu) for size in LARGE)]
EVERY_SIZE = pytest.mark.parametrize(("n_queries", "n_keys", "dim"), SIZES)

LAUNCHES = """
import torch
from tests.ops.test_gpu_screens import LARGE, SMALL, integers, listed
from vlcal.ops._cuda_search import SCREENS

for size in (*SMALL, *LARGE):
    q16, k16, bias = integers(*size)
    SCREENS.group_max(q16, k16, bias)
    listed(SCREENS, q16, k16, bias, torch.zeros(len(q16), device="cuda"), 64)
    torch.cuda.synchronize()
"""


@pytest.fixture(scope="module", params=["triton", "cuda"])
def screens(request):
    if request.param == "triton":
        if why := _triton.missing():
            pytest.skip(why)
        return search_screen.SCREENS
    if why := _cuda_search.missing() or _cuda.refuse_device(torch.empty(1, device="cuda")):
        pytest.skip(why)
    # a kernel that fails takes its process along: not this one
    root, command = Path(__file__).parents[2], [sys.executable, "-c", LAUNCHES]
    done = subprocess.run(command, cwd=root, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return _cuda_search.SCREENS


def integers(n_queries, n_keys, dim, every=1):
    """Rows whose products are exact in float32 in any order, and biases with infinite ones."""
    generator = torch.Generator(DEVICE).manual_seed(n_queries + n_keys + dim)
    kind = {"device": DEVICE, "generator": generator}
    q16 = torch.randint(-4, 5, (n_queries, dim), **kind).half()
    k16 = torch.randint(-4, 5, (n_keys * every, dim), **kind).half()[::every]
    bias = torch.randint(-100, 100, (n_keys,), **kind) / 4
    bias[torch.rand(n_keys, **kind) < 0.05] = -torch.inf
    return q16, k16, bias


def truth(q16, k16, bias):
    return q16.double() @ k16.double().T + bias.double()


def listed(screens, q16, k16, bias, floor, capacity, rungs=None, wanted=1):
    """Run the screen; without `rungs` its floors are fixed, with them they can rise to a rung."""
    rungs = floor.new_empty(len(floor), 0) if rungs is None else rungs
    gap = bias.new_zeros(-(-len(bias) // GAP_KEYS))
    ladder = gpu.Ladder(gap, rungs, rungs.clone(), wanted)
    return screens.screen(q16, k16, bias, floor, capacity, ladder)


def entries(screens, scores):
    """The largest score of each entry [Q, E], and the first key of each [E]."""
    n, tile = scores.shape[1], screens.width * screens.step
    padded = torch.nn.functional.pad(scores, (0, -n % tile), value=-torch.inf)
    best = padded.view(len(scores), -1, screens.width, screens.step).amax(2).flatten(1)
    first = torch.arange(padded.shape[1], device=scores.device)
    first = first.view(-1, screens.width, screens.step)[:, 0].flatten()
    return best[:, first < n], first[first < n]


def assert_lists_hold(screens, lists, scores, floor, capacity):
    count, ids, found = lists
    best, first = entries(screens, scores)
    reached = best >= floor.double()[:, None]
    assert torch.equal(count.long(), reached.sum(1))
    stored = torch.arange(capacity, device=DEVICE) < count[:, None]
    row, _ = stored.nonzero(as_tuple=True)
    entry = torch.searchsorted(first, ids[stored].long())
    assert torch.equal(first[entry], ids[stored].long())
    times = torch.zeros_like(reached, dtype=torch.int32)
    times.index_put_((row, entry), torch.ones_like(row, dtype=torch.int32), True)
    assert int(times.max()) <= 1
    assert not (times.bool() & ~reached).any()
    assert torch.equal(times.sum(1), count.clamp(max=capacity).long())
    assert torch.equal(found[stored].double(), best[row, entry])


@EVERY_SIZE
def test_group_maxima_belong_to_different_keys(screens, n_queries, n_keys, dim):
    q16, k16, _ = integers(n_queries, n_keys, dim)
    # distinct and far above the products: every score tells its key
    bias = 1e5 * torch.arange(n_keys, device=DEVICE)
    bias = bias if n_keys < 100 else integers(n_queries, n_keys, dim)[2]
    best, scores = screens.group_max(q16, k16, bias).double(), truth(q16, k16, bias)
    assert best.shape[1] * gpu.GROUP >= n_keys
    assert torch.equal(best.amax(1), scores.amax(1))
    # as many of the best scores as there are groups: a group can hide GROUP - 1, and has one key
    ranked = scores.sort(1, descending=True).values[:, : best.shape[1]]
    assert (best.sort(1, descending=True).values[:, : ranked.shape[1]] <= ranked).all()
    if n_keys < 100:
        for found in best:
            real = found[found > -torch.inf]
            assert len(real.unique()) == len(real)
            assert len(real) * gpu.GROUP >= n_keys


@EVERY_SIZE
def test_lists_hold_every_entry_that_reaches_the_floor(screens, n_queries, n_keys, dim):
    q16, k16, bias = integers(n_queries, n_keys, dim)
    scores = truth(q16, k16, bias)
    floor = scores.kthvalue(max(1, n_keys - 50), 1).values.float()
    floor[::7] = torch.inf
    lists = listed(screens, q16, k16, bias, floor, 512)
    assert_lists_hold(screens, lists, scores, floor, 512)


@pytest.mark.parametrize("capacity", [1, 7, 1000])
def test_lists_count_what_they_cannot_hold(screens, capacity):
    q16, k16, bias = integers(130, 1000, 128)
    floor = torch.full((130,), -torch.inf, device=DEVICE)
    floor[::2] = 0
    lists = listed(screens, q16, k16, bias, floor, capacity)
    assert_lists_hold(screens, lists, truth(q16, k16, bias), floor, capacity)


@pytest.mark.parametrize("every", [2, 3, 17])
def test_keys_may_lie_apart(screens, every):
    q16, k16, bias = integers(70, 900, 256, every)
    scores, floor = truth(q16, k16, bias), torch.zeros(70, device=DEVICE)
    lists = listed(screens, q16, k16, bias, floor, 900)
    assert_lists_hold(screens, lists, scores, floor, 900)
    assert torch.equal(screens.group_max(q16, k16, bias).amax(1).double(), scores.amax(1))


@needs_gpu
def test_floors_rise_to_what_is_sure_and_lists_become_shorter(screens):
    if screens is search_screen.SCREENS:
        pytest.skip("the floors of this screen stay")
    q16, k16, bias = integers(300, 200_000, 512)
    scores = truth(q16, k16, bias)
    ranked = scores.topk(160).values.float()
    floor = ranked[:, -1].contiguous()
    alone, *_ = listed(screens, q16, k16, bias, floor, 1024)
    rungs = ranked[:, [79, 39, 19]].contiguous()
    count, *_ = listed(screens, q16, k16, bias, floor, 1024, rungs, wanted=10)
    assert (floor <= ranked[:, 9]).all()
    assert count.double().mean() < 0.7 * alone.double().mean()
    # every entry above the floors of the end is listed
    best, _ = entries(screens, scores)
    assert ((best >= floor.double()[:, None]).sum(1) <= count).all()
    assert (count <= alone).all()


def need_memory(gibibytes):
    if torch.cuda.mem_get_info()[0] < gibibytes << 30:
        pytest.skip(f"needs {gibibytes} GiB of free memory")


@needs_gpu
def test_keys_may_lie_beyond_four_gibibytes(screens):
    need_memory(10)
    half = {"dtype": torch.float16, "device": "cuda"}
    k16, q16 = torch.zeros(9_000_000, 256, **half), torch.ones(3, 256, **half)
    # the first keys of entries
    found = torch.tensor([0, 4_194_304, 8_388_352, 8_388_608, 8_999_936], device="cuda")
    k16[found] = 1
    bias, floor = torch.zeros(len(k16), device="cuda"), torch.ones(3, device="cuda")
    count, ids, _ = listed(screens, q16, k16, bias, floor, 8)
    assert count.tolist() == [5, 5, 5]
    assert torch.equal(ids[:, :5].sort(1).values.long(), found.expand(3, -1))
    assert (screens.group_max(q16, k16, bias) == 256).sum(1).tolist() == [5, 5, 5]


@needs_gpu
def test_lists_may_lie_beyond_two_billion_entries(screens):
    need_memory(24)
    ones = torch.ones(135_000, 64, dtype=torch.float16, device="cuda")
    bias, floor = torch.zeros(64, device="cuda"), torch.ones(len(ones), device="cuda")
    count, ids, score = listed(screens, ones, ones[:64], bias, floor, 1 << 14)
    step = screens.step
    assert (count == step).all() and (score[:, :step] == 64).all()
    assert torch.equal(ids[-1, :step].sort().values.cpu(), torch.arange(step, dtype=torch.int32))


@needs_gpu
@pytest.mark.parametrize("dim", [64, 512, 1024])
def test_scores_stay_within_the_bound_of_the_certificate_in_every_run(screens, dim):
    generator = torch.Generator("cuda").manual_seed(dim)
    q16 = torch.randn(150, dim, device="cuda", generator=generator).half()
    # one key an entry: the others are not looked at
    k16 = torch.randn(screens.step, dim, device="cuda", generator=generator).half()
    bias = torch.randn(screens.step, device="cuda", generator=generator)
    floor = torch.full((150,), -torch.inf, device="cuda")
    _, ids, found = listed(screens, q16, k16, bias, floor, screens.step)
    product = (q16.double() @ k16.double().T).gather(1, ids.long())
    lengths = q16.double().norm(dim=1)[:, None] * k16.double().norm(dim=1)[ids.long()]
    shift = bias[ids.long()].double()
    bound = dim * 2.0**-22 * lengths + 2.0**-23 * (lengths + shift.abs())
    assert ((found.double() - product - shift).abs() <= bound).all()
    first = screens.group_max(q16, k16, bias)
    assert all(torch.equal(first, screens.group_max(q16, k16, bias)) for _ in range(50))


def clustered(n, dim, seed):
    kind = {"device": "cuda", "generator": torch.Generator("cuda").manual_seed(seed)}
    centers = torch.randn(50, dim, **kind)
    rows = centers[torch.randint(50, (n,), **kind)] + 0.3 * torch.randn(n, dim, **kind) + 1
    return torch.nn.functional.normalize(rows, dim=1)


@needs_gpu
@pytest.mark.parametrize(
    ("n", "dim", "k"), [(20_000, 512, 10), (30_001, 100, 1), (9_000, 1000, 50)]
)
@pytest.mark.parametrize("exclude_self", [False, True])
def test_neighbors_are_those_of_float64(screens, n, dim, k, exclude_self):
    keys = clustered(n, dim, 0)
    keys[n // 2 : n // 2 + 500] = keys[:500]
    queries = keys if exclude_self else clustered(300, dim, 1)
    backend = "triton" if screens is search_screen.SCREENS else "cuda"
    ours = ops.knn(queries, keys, k, exclude_self=exclude_self, backend=backend)
    if exclude_self:
        true = ops.knn(queries, keys, k, exclude_self=True, backend="reference")
    else:
        true = ops.knn(queries.cpu(), keys.cpu(), k, backend="native")
    assert torch.equal(ours.index.cpu(), true.index.cpu())
    assert torch.equal(ours.distance.cpu(), true.distance.cpu())

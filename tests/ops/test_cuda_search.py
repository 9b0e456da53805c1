"""The CUDA C++ screens: launched on an emulated GPU and compared bit for bit, and on a real one."""

import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vlcal import _cuda, _native, ops
from vlcal.ops import _cuda_search
from vlcal.ops._triton import search_rows

ROOT = Path(__file__).parents[2]
WIDTH, STEP = _cuda_search.SCREENS.width, _cuda_search.SCREENS.step


@pytest.mark.gpu_proof
def test_launchers_keep_the_rules_of_a_runtime_and_their_kernels_equal_a_plain_loop(tmp_path):
    if not (nvcc := shutil.which("nvcc")):
        pytest.skip("no nvcc was found")
    # the code for a GPU is not looked at: the program brings a runtime whose launches are emulated
    program, source = tmp_path / "search", ROOT / "csrc" / "cuda" / "search_sm90.cu"
    # fibers jump between stacks, which fortified jumps forbid
    flags = ["-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-Xcompiler=-Wno-unknown-pragmas"]
    target = ["-cudart=none", "-gencode=arch=compute_90a,code=compute_90a", f"-I{ROOT / 'csrc'}"]
    emulated = Path(__file__).parent / "cuda" / "search.cpp"
    subprocess.run([nvcc, *flags, *target, emulated, source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stdout + done.stderr


def test_python_and_kernels_agree_on_entries_and_gaps():
    header = (ROOT / "csrc/cuda/search_layout.cuh").read_text()
    for name, value in {
        "kEntryKeys": WIDTH, "kEntryStep": STEP, "kGapKeys": search_rows.GAP_KEYS
    }.items():  # fmt: skip
        assert f"{name} = {value};" in header


@pytest.mark.parametrize(
    "call",
    [
        lambda rows: ops.knn(rows, rows, 3, backend="cuda"),
        lambda rows: ops.rank_vocabulary(rows, rows, 3, reduce="max", backend="cuda"),
        lambda rows: ops.SearchIndex(rows, backend="cuda"),
    ],
)
def test_refuses_other_devices_with_a_reason(call):
    why = _cuda.missing() or "takes CUDA tensors, got cpu"
    with pytest.raises(NotImplementedError, match=f"cuda: .*{re.escape(why)}"):
        call(torch.randn(20, 8))


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0)])
def test_refuses_other_generations_with_a_reason(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    there = torch.empty(4, 8, device="meta")
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda", 0))
    assert _cuda.refuse_device(there) == (
        f"needs compute capability 9.0, cuda:0 has {capability[0]}.{capability[1]}"
    )


def test_launchers_pass_addresses_sizes_and_strides_whatever_the_default(monkeypatch):
    made = []
    kernels = {
        name: lambda *args, name=name: made.append((name, *args))
        for name in ("group_max", "screen")
    }
    monkeypatch.setattr(_native, "library", lambda: SimpleNamespace(**kernels))
    monkeypatch.setattr(_cuda, "launch_on", lambda tensor: nullcontext((3, 77)))
    q16 = torch.zeros(7, 128).half()
    for keys, stride in ((1, 128), (50, 3 * 128)):
        k16, bias, gap = torch.zeros(3 * keys, 128).half()[::3], torch.zeros(keys), torch.zeros(1)
        floor, rungs, floors = torch.zeros(7), torch.zeros(7, 2), torch.zeros(7, 2)
        made.clear()
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            best = _cuda.group_max(q16, k16, bias)
            count, ids, score = _cuda.screen(q16, k16, bias, floor, 9, gap, rungs, floors, 4)
        finally:
            torch.set_default_dtype(before)
        pairs = (q16.data_ptr(), 7, k16.data_ptr(), keys, stride, 128, bias.data_ptr())
        lists = (floor.data_ptr(), 9, count.data_ptr(), ids.data_ptr(), score.data_ptr())
        assert made[0] == ("group_max", *pairs, best.data_ptr(), 3, 77)
        assert made[1][:13] == ("screen", *pairs, *lists)
        assert made[1][13:16] == (gap.data_ptr(), rungs.data_ptr(), floors.data_ptr())
        assert made[1][17:] == (2, 4, 3, 77)
        assert (best.dtype, score.dtype) == (torch.float32, torch.float32)
        assert (count.dtype, ids.dtype) == (torch.int32, torch.int32)
        assert (best.shape, score.shape, ids.shape) == ((7, 1), (7, 9), (7, 9))
        assert not count.any()


# everything below needs a GPU


LAUNCHES = """
import torch
from tests.ops.test_cuda_search import SIZES, integers, screen
from vlcal import _cuda

for size in SIZES:
    q16, k16, bias = integers(*size)
    _cuda.group_max(q16, k16, bias)
    screen(q16, k16, bias, torch.zeros(len(q16), device="cuda"), 64)
    torch.cuda.synchronize()
"""


@pytest.fixture(scope="module")
def hopper():
    """Skips where the kernels cannot run; a kernel that fails takes its process along: not ours."""
    if why := _cuda_search.missing() or _cuda.refuse_device(torch.empty(1, device="cuda")):
        pytest.skip(why)
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def screen(q16, k16, bias, floor, capacity):
    """The screen with floors that stay."""
    none, gap = floor.new_empty(len(floor), 0), bias.new_zeros(-(-len(bias) // 256))
    return _cuda.screen(q16, k16, bias, floor, capacity, gap, none, none, 1)


def integers(n_queries, n_keys, dim, every=1):
    """Rows whose products are exact in float32 in any order, and biases with infinite ones."""
    generator = torch.Generator("cuda").manual_seed(n_queries + n_keys + dim)
    kind = {"device": "cuda", "generator": generator}
    q16 = torch.randint(-4, 5, (n_queries, dim), **kind).half()
    k16 = torch.randint(-4, 5, (n_keys * every, dim), **kind).half()[::every]
    bias = torch.randint(-100, 100, (n_keys,), **kind) / 4
    bias[torch.rand(n_keys, **kind) < 0.05] = -torch.inf
    return q16, k16, bias


def truth(q16, k16, bias):
    return q16.double() @ k16.double().T + bias.double()


def entries(scores):
    """The largest score of each entry [Q, E], and the first key of each [E]."""
    n, missing = scores.shape[1], -scores.shape[1] % (WIDTH * STEP)
    padded = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
    best = padded.view(len(scores), -1, WIDTH, STEP).amax(2).flatten(1)
    first = torch.arange(n + missing, device=scores.device).view(-1, WIDTH, STEP)[:, 0].flatten()
    return best[:, first < n], first[first < n]


def assert_lists_hold(lists, scores, floor, capacity):
    count, ids, found = lists
    best, first = entries(scores)
    reached = best >= floor.double()[:, None]
    assert torch.equal(count.long(), reached.sum(1))
    stored = torch.arange(capacity, device="cuda") < count[:, None]
    row, _ = stored.nonzero(as_tuple=True)
    entry = torch.searchsorted(first, ids[stored].long())
    assert torch.equal(first[entry], ids[stored].long())
    listed = torch.zeros_like(reached, dtype=torch.int32)
    listed.index_put_((row, entry), torch.ones_like(row, dtype=torch.int32), True)
    assert int(listed.max()) <= 1
    assert not (listed.bool() & ~reached).any()
    assert torch.equal(listed.sum(1), count.clamp(max=capacity).long())
    assert torch.equal(found[stored].double(), best[row, entry])


SIZES = [
    (1, 1, 64),
    (1, 64, 64),
    (128, 256, 64),
    (127, 255, 128),
    (129, 257, 192),
    (128, 1, 512),
    (300, 10_001, 512),
    (5, 100_003, 512),
    (4100, 30_000, 64),
    (1000, 4097, 576),
    (64, 3000, 1024),
    (33, 1025, 2048),
    (2, 300_000, 320),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_group_maxima_are_those_of_the_scores(hopper, size):
    q16, k16, bias = integers(*size)
    scores = truth(q16, k16, bias)
    padded = torch.nn.functional.pad(scores, (0, -size[1] % 64), value=-torch.inf)
    expected = padded.view(size[0], -1, 64).amax(2)
    assert torch.equal(_cuda.group_max(q16, k16, bias).double(), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_lists_hold_every_key_that_reaches_the_floor(hopper, size):
    q16, k16, bias = integers(*size)
    scores = truth(q16, k16, bias)
    rank = max(1, size[1] - 50)
    floor = scores.kthvalue(rank, 1).values.float()
    floor[::7] = torch.inf
    capacity = 512
    lists = screen(q16, k16, bias, floor, capacity)
    assert_lists_hold(lists, scores, floor, capacity)


@pytest.mark.parametrize("capacity", [1, 7, 1000])
def test_lists_count_what_they_cannot_hold(hopper, capacity):
    q16, k16, bias = integers(130, 1000, 128)
    floor = torch.full((130,), -torch.inf, device="cuda")
    floor[::2] = 0
    lists = screen(q16, k16, bias, floor, capacity)
    assert_lists_hold(lists, truth(q16, k16, bias), floor, capacity)


@pytest.mark.parametrize("every", [2, 3, 17])
def test_keys_may_lie_apart(hopper, every):
    q16, k16, bias = integers(70, 900, 256, every)
    scores = truth(q16, k16, bias)
    floor = torch.zeros(70, device="cuda")
    lists = screen(q16, k16, bias, floor, 900)
    assert_lists_hold(lists, scores, floor, 900)
    best = _cuda.group_max(q16, k16, bias)
    assert torch.equal(best.amax(1).double(), scores.amax(1))


def need_memory(gibibytes):
    if torch.cuda.mem_get_info()[0] < gibibytes << 30:
        pytest.skip(f"needs {gibibytes} GiB of free memory")


def test_keys_may_lie_beyond_four_gibibytes(hopper):
    need_memory(10)
    half = {"dtype": torch.float16, "device": "cuda"}
    k16, q16 = torch.zeros(9_000_000, 256, **half), torch.ones(3, 256, **half)
    # the first keys of entries
    found = torch.tensor([0, 4_194_304, 8_388_544, 8_388_608, 8_999_936], device="cuda")
    k16[found] = 1
    bias, floor = torch.zeros(len(k16), device="cuda"), torch.ones(3, device="cuda")
    count, ids, _ = screen(q16, k16, bias, floor, 8)
    assert count.tolist() == [5, 5, 5]
    assert torch.equal(ids[:, :5].sort(1).values.long(), found.expand(3, -1))
    groups = _cuda.group_max(q16, k16, bias)
    assert torch.equal(groups.nonzero()[:, 1].view(3, 5), (found // 64).expand(3, -1))
    assert groups.max() == 256


def test_lists_may_lie_beyond_two_billion_entries(hopper):
    need_memory(24)
    ones = torch.ones(135_000, 64, dtype=torch.float16, device="cuda")
    bias, floor = torch.zeros(64, device="cuda"), torch.ones(len(ones), device="cuda")
    count, ids, score = screen(ones, ones[:64], bias, floor, 1 << 14)
    assert (count == STEP).all() and (score[:, :STEP] == 64).all()
    assert torch.equal(ids[-1, :STEP].sort().values.cpu(), torch.arange(STEP, dtype=torch.int32))


@pytest.mark.parametrize("dim", [128, 512, 1024])
def test_every_run_is_the_same(hopper, dim):
    q16, k16, bias = integers(256, 50_000, dim)
    first = _cuda.group_max(q16, k16, bias)
    runs = [_cuda.group_max(q16, k16, bias) for _ in range(50)]
    assert all(torch.equal(first, run) for run in runs)


def test_floors_rise_to_what_is_sure_and_lists_become_shorter(hopper):
    q16, k16, bias = integers(300, 200_000, 512)
    scores, best = truth(q16, k16, bias), entries(truth(q16, k16, bias))[0]
    wanted = 10
    rungs = scores.topk(160).values[:, [79, 39, 19]].float().contiguous()
    floor = scores.topk(160).values[:, -1].float().contiguous()
    gap = torch.zeros(-(-200_000 // 256), device="cuda")
    alone, _, _ = screen(q16, k16, bias, floor, 1024)
    count, *_ = _cuda.screen(q16, k16, bias, floor, 1024, gap, rungs, rungs.clone(), wanted)
    assert (floor <= scores.topk(wanted).values[:, -1]).all()
    assert count.double().mean() < 0.7 * alone.double().mean()
    # every entry above the floors of the end is listed
    assert ((best >= floor.double()[:, None]).sum(1) <= count).all()
    assert (count <= alone).all()


@pytest.mark.parametrize("dim", [64, 512, 1024])
def test_scores_stay_within_the_bound_of_the_certificate(hopper, dim):
    generator = torch.Generator("cuda").manual_seed(dim)
    q16 = torch.randn(150, dim, device="cuda", generator=generator).half()
    # one key an entry: the others are not looked at
    k16 = torch.randn(STEP, dim, device="cuda", generator=generator).half()
    bias = torch.randn(STEP, device="cuda", generator=generator)
    floor = torch.full((150,), -torch.inf, device="cuda")
    _, ids, found = screen(q16, k16, bias, floor, STEP)
    product = (q16.double() @ k16.double().T).gather(1, ids.long())
    lengths = q16.double().norm(dim=1)[:, None] * k16.double().norm(dim=1)[ids.long()]
    shift = bias[ids.long()].double()
    bound = dim * 2.0**-22 * lengths + 2.0**-23 * (lengths + shift.abs())
    assert ((found.double() - product - shift).abs() <= bound).all()


def clustered(n, dim, seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    kind = {"device": "cuda", "generator": generator}
    centers = torch.randn(50, dim, **kind)
    rows = centers[torch.randint(50, (n,), **kind)] + 0.3 * torch.randn(n, dim, **kind) + 1
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize(
    ("n", "dim", "k"), [(20_000, 512, 10), (30_001, 100, 1), (9_000, 1000, 50)]
)
@pytest.mark.parametrize("exclude_self", [False, True])
def test_neighbors_are_those_of_the_other_backends(hopper, n, dim, k, exclude_self):
    keys = clustered(n, dim, 0)
    keys[n // 2 : n // 2 + 500] = keys[:500]
    queries = keys if exclude_self else clustered(300, dim, 1)
    ours = ops.knn(queries, keys, k, exclude_self=exclude_self, backend="cuda")
    triton = ops.knn(queries, keys, k, exclude_self=exclude_self, backend="triton")
    assert torch.equal(ours.index, triton.index)
    assert torch.equal(ours.distance, triton.distance)
    if not exclude_self:
        exact = ops.knn(queries[:40].cpu(), keys.cpu(), k, backend="native")
        assert torch.equal(ours.index[:40].cpu(), exact.index)

"""The CUDA C++ screens: on an emulated GPU bit for bit, compiled without one, and on one."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vlcal import _cuda, _native, ops
from vlcal.ops import _cuda_search
from vlcal.ops._triton import search as gpu

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "cuda"
# a block of compute capability 9.0 may have so much shared memory; the smaller one makes the
# kernel stream the queries too
WHOLE, LESS = 232448, 170000
# two screens in each file, for resident and for streamed queries
KERNELS = {"sm80": 2, "sm90": 4}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler was found")
    program = tmp_path_factory.mktemp("emulator") / "search"
    # fibers jump between stacks, which fortified jumps forbid
    flags = ["-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-Wall", "-Wno-unknown-pragmas"]
    subprocess.run([compiler, *flags, str(HERE / "search.cpp"), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize(
    ("kernel", "queries", "keys", "dim", "stride", "processors", "limit", "says"),
    [
        (80, 1, 1, 64, 1, 1, WHOLE, "up to 1 tiles a block"),
        (80, 130, 600, 64, 1, 2, WHOLE, "up to 5 tiles a block"),
        (80, 129, 129, 192, 3, 1, WHOLE, "up to 2 tiles a block"),
        (80, 7, 1025, 256, 1, 3, WHOLE, "up to 3 tiles a block"),
        (90, 1, 1, 64, 1, 1, WHOLE, "resident, 6 stages, up to 1 tiles a block"),
        (90, 200, 700, 64, 2, 2, WHOLE, "resident, 6 stages, up to 3 tiles a block"),
        (90, 70, 513, 320, 1, 1, LESS, "streamed, 3 stages, up to 3 tiles a block"),
        (90, 65, 257, 576, 1, 132, WHOLE, "streamed, 4 stages, up to 1 tiles a block"),
        (90, 5, 1300, 512, 1, 1, WHOLE, "resident, 3 stages, up to 6 tiles a block"),
    ],
)
def test_emulated_kernels_equal_a_plain_loop(
    emulator, kernel, queries, keys, dim, stride, processors, limit, says
):
    given = [kernel, queries, keys, dim, stride, processors, limit, keys]
    done = subprocess.run(
        [str(emulator), *map(str, given)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("same; ") and done.stdout.rstrip().endswith(says)


def test_launchers_keep_the_rules_of_a_runtime_and_their_kernels_run(tmp_path):
    if not (nvcc := shutil.which("nvcc")):
        pytest.skip("no nvcc was found")
    # the code for a GPU is not looked at: the program brings a runtime whose launches are emulated
    program, folder = tmp_path / "launches", ROOT / "csrc" / "cuda"
    flags = ["-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-Xcompiler=-Wno-unknown-pragmas"]
    target = ["-cudart=none", "-gencode=arch=compute_80,code=compute_80", f"-I{ROOT / 'csrc'}"]
    sources = [HERE / "launches.cpp", folder / "search_sm80.cu", folder / "search_sm90.cu"]
    subprocess.run([nvcc, *flags, *target, *sources, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "same; 16 launches\n"), done.stdout + done.stderr


@pytest.fixture(scope="module", params=[("sm80", "80"), ("sm80", "90a"), ("sm90", "90a")], ids=str)
def compiled(request, tmp_path_factory):
    """The machine code of both screens of a file for a capability, and what ptxas says of it."""
    if not (nvcc := shutil.which("nvcc")):
        pytest.skip("no nvcc was found")
    file, arch = request.param
    cubin = tmp_path_factory.mktemp("compiled") / f"{file}-{arch}.cubin"
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    flags = ["-std=c++17", "-O3", "-fmad=false", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", target]
    source = ROOT / "csrc" / "cuda" / f"search_{file}.cu"
    command = [nvcc, *flags, "-cubin", str(source), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return file, cubin, done.stderr


def test_kernels_keep_everything_in_registers(compiled):
    file, _, says = compiled
    spotless = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    assert says.count(spotless) == says.count("bytes stack frame") == KERNELS[file]
    # such as C7515, products that wait for each other, or C7508, registers not handed over: these
    # are not called warnings
    assert "warning" not in says.lower() and "(C7" not in says


def test_kernels_are_made_of_the_intended_instructions(compiled):
    file, cubin, _ = compiled
    kernels = instructions(cubin)
    assert len(kernels) == KERNELS[file]
    for code in kernels:
        count = Counter(line.split()[0] for line in code)
        assert not any(name.startswith(("LDL", "STL")) for name in count)
        if file == "sm90":
            products = [line for line in code if line.startswith("HGMMA")]
            assert len(products) == count["HGMMA.64x256x16.F32"] == 4
            # the sums stay where they are, and only the two waits of the source wait for them
            assert len({line.split()[1] for line in products}) == 1
            assert count["WARPGROUP.DEPBAR.LE"] == 2 and count["WARPGROUP.ARRIVE"] == 1
            assert count["UTMALDG.2D"] and count["SYNCS.PHASECHK.TRANS64.TRYWAIT"]
            assert count["USETMAXREG.DEALLOC.CTAPOOL"] == count["USETMAXREG.TRY_ALLOC.CTAPOOL"] == 1
        else:
            assert count["HMMA.16816.F32"] == 64 and count["LDSM.16.M88.4"] == 24
            assert count["LDGSTS.E.BYPASS.128"] == 24


def instructions(cubin):
    """The instructions of each kernel, without predicates."""
    places = [Path(shutil.which("cuobjdump") or "")]
    if (triton := find_spec("triton")) and triton.origin:
        places.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    for tool in filter(Path.is_file, places):
        done = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            line = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([^;]+);", re.MULTILINE)
            return [line.findall(kernel) for kernel in done.stdout.split("Function : ")[1:]]
    pytest.skip("no cuobjdump that reads this machine code was found")


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


@pytest.mark.skipif(_cuda.not_built() is not None, reason=str(_cuda.not_built()))
@pytest.mark.parametrize("name", ["group_max", "screen"])
@pytest.mark.parametrize("generation", ["sm80", "sm90"])
def test_a_launch_that_cannot_be_is_a_sentence(name, generation):
    run = getattr(_native.library(), f"{name}_{generation}")
    outputs = (0,) if name == "group_max" else (0, 1, 0, 0, 0)
    with pytest.raises(ValueError, match="must be a multiple of 64 up to 16777216, got 65"):
        run(0, 1, 0, 1, 65, 65, 0, *outputs, 0, 0)
    with pytest.raises(
        ValueError, match="takes at most 2147482624 rows, got 1 queries and 2147483648"
    ):
        run(0, 1, 0, 2**31, 64, 64, 0, *outputs, 0, 0)


@pytest.fixture
def calls(monkeypatch):
    """What reaches the kernels, which are not there: their name and arguments."""
    made = []
    names = [f"{name}_{chip}" for name in ("group_max", "screen") for chip in ("sm80", "sm90")]
    kernels = {name: lambda *args, name=name: made.append((name, *args)) for name in names}
    monkeypatch.setattr(_native, "library", lambda: SimpleNamespace(**kernels))
    monkeypatch.setattr(_cuda, "launch_on", lambda tensor: nullcontext((3, 77)))
    return made


@pytest.mark.parametrize(("wgmma", "chip"), [(False, "sm80"), (True, "sm90")])
@pytest.mark.parametrize("keys", [1, 50])
def test_launchers_pass_addresses_sizes_and_strides(calls, wgmma, chip, keys):
    q16, k16 = torch.zeros(7, 128).half(), torch.zeros(3 * keys, 128).half()[::3]
    bias, floor = torch.zeros(keys), torch.zeros(7)
    best = _cuda.group_max(q16, k16, bias, wgmma=wgmma)
    count, ids, score = _cuda.screen(q16, k16, bias, floor, 9, wgmma=wgmma)
    stride = 3 * 128 if keys > 1 else 128
    pairs = (q16.data_ptr(), 7, k16.data_ptr(), keys, stride, 128, bias.data_ptr())
    lists = (count.data_ptr(), ids.data_ptr(), score.data_ptr())
    assert calls == [
        (f"group_max_{chip}", *pairs, best.data_ptr(), 3, 77),
        (f"screen_{chip}", *pairs, floor.data_ptr(), 9, *lists, 3, 77),
    ]


def test_outputs_are_what_kernels_write_whatever_the_default(calls):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        q16, bias = torch.zeros(7, 64).half(), torch.zeros(7).float()
        best = _cuda.group_max(q16, q16, bias, wgmma=False)
        count, ids, score = _cuda.screen(q16, q16, bias, bias, 9, wgmma=False)
    finally:
        torch.set_default_dtype(before)
    assert (best.dtype, score.dtype) == (torch.float32, torch.float32)
    assert (count.dtype, ids.dtype) == (torch.int32, torch.int32)
    assert (best.shape, score.shape, ids.shape) == ((7, 1), (7, 9), (7, 9))
    assert not count.any()


# everything below needs a GPU


LAUNCHES = """
import torch
from tests.ops.test_cuda_search import SIZES, integers
from vlcal import _cuda

def launch(q16, k16, bias):
    _cuda.group_max(q16, k16, bias, wgmma={wgmma})
    _cuda.screen(q16, k16, bias, torch.zeros(len(q16), device="cuda"), 64, wgmma={wgmma})
    torch.cuda.synchronize()

[launch(*integers(*size)) for size in SIZES]
"""


@pytest.fixture(scope="module", params=["mma.sync", "wgmma"])
def kernel(request):
    """The keyword argument that chooses a kernel this GPU can run, and that survives there.

    A kernel that fails takes all later CUDA calls of its process with it, so another process tries
    each first.
    """
    if why := _cuda_search.missing():
        pytest.skip(why)
    wgmma = request.param == "wgmma"
    if wgmma and not _cuda.has_wgmma(torch.device("cuda")):
        pytest.skip("wgmma needs compute capability 9.0 and a build for 90a")
    command = [sys.executable, "-c", LAUNCHES.format(wgmma=wgmma)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {"wgmma": wgmma}


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


def assert_lists_hold(lists, scores, floor, capacity):
    count, ids, found = lists
    reached = scores >= floor.double()[:, None]
    assert torch.equal(count.long(), reached.sum(1))
    stored = torch.arange(capacity, device="cuda") < count[:, None]
    row, _ = stored.nonzero(as_tuple=True)
    listed = torch.zeros_like(reached, dtype=torch.int32)
    listed.index_put_((row, ids[stored].long()), torch.ones_like(row, dtype=torch.int32), True)
    assert int(listed.max()) <= 1
    assert not (listed.bool() & ~reached).any()
    assert torch.equal(listed.sum(1), count.clamp(max=capacity).long())
    assert torch.equal(found[stored].double(), scores[row, ids[stored].long()])


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
def test_group_maxima_are_those_of_the_scores(kernel, size):
    q16, k16, bias = integers(*size)
    scores = truth(q16, k16, bias)
    padded = torch.nn.functional.pad(scores, (0, -size[1] % 64), value=-torch.inf)
    expected = padded.view(size[0], -1, 64).amax(2)
    assert torch.equal(_cuda.group_max(q16, k16, bias, **kernel).double(), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_lists_hold_every_key_that_reaches_the_floor(kernel, size):
    q16, k16, bias = integers(*size)
    scores = truth(q16, k16, bias)
    rank = max(1, size[1] - 50)
    floor = scores.kthvalue(rank, 1).values.float()
    floor[::7] = torch.inf
    capacity = 512
    lists = _cuda.screen(q16, k16, bias, floor, capacity, **kernel)
    assert_lists_hold(lists, scores, floor, capacity)


@pytest.mark.parametrize("capacity", [1, 7, 1000])
def test_lists_count_what_they_cannot_hold(kernel, capacity):
    q16, k16, bias = integers(130, 1000, 128)
    floor = torch.full((130,), -torch.inf, device="cuda")
    floor[::2] = 0
    lists = _cuda.screen(q16, k16, bias, floor, capacity, **kernel)
    assert_lists_hold(lists, truth(q16, k16, bias), floor, capacity)


@pytest.mark.parametrize("every", [2, 3, 17])
def test_keys_may_lie_apart(kernel, every):
    q16, k16, bias = integers(70, 900, 256, every)
    scores = truth(q16, k16, bias)
    floor = torch.zeros(70, device="cuda")
    lists = _cuda.screen(q16, k16, bias, floor, 900, **kernel)
    assert_lists_hold(lists, scores, floor, 900)
    best = _cuda.group_max(q16, k16, bias, **kernel)
    assert torch.equal(best.amax(1).double(), scores.amax(1))


def need_memory(gibibytes):
    if torch.cuda.mem_get_info()[0] < gibibytes << 30:
        pytest.skip(f"needs {gibibytes} GiB of free memory")


def test_keys_may_lie_beyond_four_gibibytes(kernel):
    need_memory(10)
    half = {"dtype": torch.float16, "device": "cuda"}
    k16, q16 = torch.zeros(9_000_000, 256, **half), torch.ones(3, 256, **half)
    found = torch.tensor([0, 4_194_304, 8_388_607, 8_388_608, 8_999_999], device="cuda")
    k16[found] = 1
    bias, floor = torch.zeros(len(k16), device="cuda"), torch.ones(3, device="cuda")
    count, ids, _ = _cuda.screen(q16, k16, bias, floor, 8, **kernel)
    assert count.tolist() == [5, 5, 5]
    assert torch.equal(ids[:, :5].sort(1).values.long(), found.expand(3, -1))
    groups = _cuda.group_max(q16, k16, bias, **kernel)
    assert torch.equal(groups.nonzero()[:, 1].view(3, 5), (found // 64).expand(3, -1))
    assert groups.max() == 256


def test_lists_may_lie_beyond_two_billion_entries(kernel):
    need_memory(24)
    ones = torch.ones(135_000, 64, dtype=torch.float16, device="cuda")
    bias, floor = torch.zeros(64, device="cuda"), torch.ones(len(ones), device="cuda")
    count, ids, score = _cuda.screen(ones, ones[:64], bias, floor, 1 << 14, **kernel)
    assert (count == 64).all() and (score[:, :64] == 64).all()
    assert torch.equal(ids[-1, :64].sort().values.cpu(), torch.arange(64, dtype=torch.int32))


@pytest.mark.parametrize("dim", [128, 512, 1024])
def test_every_run_is_the_same(kernel, dim):
    q16, k16, bias = integers(256, 50_000, dim)
    first = _cuda.group_max(q16, k16, bias, **kernel)
    runs = [_cuda.group_max(q16, k16, bias, **kernel) for _ in range(50)]
    assert all(torch.equal(first, run) for run in runs)


def test_runs_on_the_current_stream_and_in_a_graph(kernel):
    q16, k16, bias = integers(200, 3000, 512)
    scores, floor = truth(q16, k16, bias), torch.full((200,), 150.0, device="cuda")
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert_lists_hold(_cuda.screen(q16, k16, bias, floor, 3000, **kernel), scores, floor, 3000)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        lists = _cuda.screen(q16, k16, bias, floor, 3000, **kernel)
    floor.fill_(120.0)
    graph.replay()
    graph.replay()
    assert_lists_hold(lists, scores, floor, 3000)


@pytest.mark.parametrize("dim", [64, 512, 1024])
def test_scores_stay_within_the_bound_of_the_certificate(kernel, dim):
    generator = torch.Generator("cuda").manual_seed(dim)
    q16 = torch.randn(150, dim, device="cuda", generator=generator).half()
    k16 = torch.randn(5000, dim, device="cuda", generator=generator).half()
    bias = torch.randn(5000, device="cuda", generator=generator)
    floor = torch.full((150,), -torch.inf, device="cuda")
    _, ids, found = _cuda.screen(q16, k16, bias, floor, 5000, **kernel)
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
def test_neighbors_are_those_of_the_other_backends(kernel, monkeypatch, n, dim, k, exclude_self):
    screens = gpu.Screens(partial(_cuda.group_max, **kernel), partial(_cuda.screen, **kernel))
    monkeypatch.setattr(_cuda_search, "SCREENS", screens)
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


def test_an_index_and_a_ranking_use_these_screens(kernel, monkeypatch):
    screens = gpu.Screens(partial(_cuda.group_max, **kernel), partial(_cuda.screen, **kernel))
    monkeypatch.setattr(_cuda_search, "SCREENS", screens)
    rows = clustered(20_000, 256, 2)
    queries = clustered(400, 256, 3)
    index = ops.SearchIndex(rows, backend="cuda")
    assert torch.equal(
        index.knn(queries, 5).index, ops.knn(queries, rows, 5, backend="triton").index
    )
    ours = ops.rank_vocabulary(rows, queries, 100, reduce="max", backend="cuda")
    truth = ops.rank_vocabulary(rows.cpu(), queries.cpu(), 100, reduce="max", backend="native")
    assert torch.equal(ours.index.cpu(), truth.index)


def test_wgmma_refuses_other_devices(kernel):
    if _cuda.has_wgmma(torch.device("cuda")):
        pytest.skip("this device has wgmma")
    with pytest.raises(ValueError, match=r"needs compute capability 9\.0, this is"):
        _cuda.group_max(*integers(1, 1, 64), wgmma=True)

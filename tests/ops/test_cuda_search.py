"""The CUDA C++ screens: launched on an emulated GPU and compared bit for bit, and on a real one."""

import re
import shutil
import subprocess
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

"""The CUDA C++ bin sums: on an emulated GPU, compiled without one, and on one."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.ops.cases import confidences, tied
from vlcal import _cuda
from vlcal.ops import bin_statistics, equal_mass_statistics
from vlcal.ops._triton import equal_mass

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "cuda"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler was found")
    program = tmp_path_factory.mktemp("emulator") / "binning"
    flags = ["-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-Wno-unknown-pragmas"]
    include = f"-I{ROOT / 'csrc'}"
    source = str(HERE / "binning.cpp")
    subprocess.run([compiler, *flags, include, source, "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize(
    ("kernel", "samples", "bins", "blocks", "confidences", "thresholds"),
    [
        ("bins", 0, 15, 1, "uniform", "right"),
        ("bins", 1, 15, 1, "uniform", "right"),
        ("bins", 4097, 15, 2, "uniform", "right"),
        ("bins", 3000, 1, 1, "small", "right"),
        ("bins", 3000, 10, 3, "edges", "left"),
        ("bins", 3000, 17, 1, "edges", "right"),
        ("bins", 3000, 48, 2, "edges", "squares"),
        ("bins", 3000, 15, 1, "bad", "right"),
        ("bins", 600_001, 15, 1, "one", "right"),  # more than a word holds
        ("bins", 300_001, 15, 1, "sure", "left"),
        ("cells", 1, 1, 1, "uniform", "-"),
        ("cells", 4099, 1, 2, "uniform", "-"),
        ("cells", 3000, 1, 1, "small", "-"),
        ("cells", 3000, 1, 2, "bad", "-"),
        ("cells", 130_001, 1, 1, "one", "-"),  # more than 16 bits hold
        ("cells", 70_001, 1, 1, "sure", "-"),
        ("values", 4099, 1, 2, "uniform", "-"),
        ("values", 3000, 1, 1, "small", "-"),
        ("values", 3000, 1, 1, "bad", "-"),
        ("values", 9001, 1, 2, "sure", "-"),
    ],
)
def test_emulated_kernels_give_the_integers_of_the_cpu(
    emulator, kernel, samples, bins, blocks, confidences, thresholds
):
    given = [kernel, samples, bins, blocks, confidences, thresholds]
    done = subprocess.run(
        [str(emulator), *map(str, given)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stdout + done.stderr


def test_python_and_kernels_agree_on_the_cells_and_the_bins():
    header = (ROOT / "csrc/cuda/binning.h").read_text()
    assert f"kMostBins = {_cuda.MOST_BINS};" in header
    assert equal_mass.CELLS == 0x3F81


@pytest.mark.parametrize("op", [bin_statistics, equal_mass_statistics])
def test_refuses_other_devices_with_a_reason(op):
    why = _cuda.missing() or "takes CUDA tensors, got cpu"
    with pytest.raises(NotImplementedError, match=f"cuda: .*{re.escape(why)}"):
        op(*confidences(10), backend="cuda")


# everything below needs a GPU


@pytest.fixture
def gpu():
    if why := _cuda.missing():
        pytest.skip(why)
    return "cuda"


@pytest.mark.parametrize("make", [confidences, tied])
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
@pytest.mark.parametrize("op", [bin_statistics, equal_mass_statistics])
def test_same_integers_as_the_cpu(gpu, make, offset, op):
    confidence, correct = make(200_003)
    for skip in (0, offset):  # both aligned alike, and not
        want = op(confidence[offset:], correct[offset:], backend="reference").table
        right = torch.cat([correct[:skip], correct[offset:]]).to(gpu)[skip:]
        got = op(confidence.to(gpu)[offset:], right, backend="cuda").table
        assert torch.equal(got.cpu(), want)


def test_more_samples_than_32_bits_count(gpu):
    n, free = 2**31 + 5, torch.cuda.mem_get_info()[0]
    if free < 8 * n:
        pytest.skip(f"needs {8 * n} bytes on the device, {free} are free")
    confidence = torch.full((n,), 0.75, device=gpu)
    confidence[-1] = 0.25
    correct = torch.ones(n, dtype=torch.bool, device=gpu)
    table = bin_statistics(confidence, correct, 2, backend="cuda").table
    assert table[:2].tolist() == [[1, n - 1]] * 2
    assert table[2].tolist() == [2**28, (n - 1) * 3 * 2**28]
    with pytest.raises(NotImplementedError, match=r"up to 2\^31 - 1 samples"):
        equal_mass_statistics(confidence, correct, backend="cuda")


@pytest.mark.parametrize("op", [bin_statistics, equal_mass_statistics])
def test_refuses_what_is_no_confidence(gpu, op):
    confidence, correct = (values.to(gpu) for values in confidences(700))
    confidence[600] = torch.nan
    with pytest.raises(ValueError, match=r"got nan in row 600 \(1 such rows in all\)"):
        op(confidence, correct, backend="cuda")


def test_refuses_what_it_does_not_do_with_a_reason(gpu):
    confidence, correct = (values.to(gpu) for values in confidences(100))
    with pytest.raises(NotImplementedError, match="up to 48 bins, got 49"):
        bin_statistics(confidence, correct, 49, backend="cuda")
    with pytest.raises(NotImplementedError, match="float64 confidences are not supported"):
        bin_statistics(confidence.double(), correct, backend="cuda")
    with pytest.raises(NotImplementedError, match="need a sort"):
        equal_mass_statistics(confidence, correct, ties="order", backend="cuda")

"""The CUDA C++ screens: on an emulated GPU bit for bit, compiled without one, and on one."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "cuda"
# a block of compute capability 9.0 may have so much shared memory; the smaller one makes the
# kernel stream the queries too
WHOLE, LESS = 232448, 170000


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
        (80, 7, 1025, 576, 1, 3, WHOLE, "up to 3 tiles a block"),
        (90, 1, 1, 64, 1, 1, WHOLE, "resident, 6 stages, up to 1 tiles a block"),
        (90, 200, 700, 64, 2, 2, WHOLE, "resident, 6 stages, up to 3 tiles a block"),
        (90, 70, 513, 320, 1, 1, LESS, "streamed, 3 stages, up to 3 tiles a block"),
        (90, 129, 257, 576, 1, 132, WHOLE, "streamed, 4 stages, up to 1 tiles a block"),
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


@pytest.mark.parametrize(("arch", "kernels"), [("80", 2), ("90a", 4)])
def test_kernels_keep_everything_in_registers(tmp_path, arch, kernels):
    if not (nvcc := shutil.which("nvcc")):
        pytest.skip("no nvcc was found")
    source = ROOT / "csrc" / "cuda" / f"search_sm{arch.rstrip('a')}.cu"
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    flags = ["-std=c++17", "-O3", "-fmad=false", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", target]
    done = subprocess.run(
        [nvcc, *flags, "-cubin", str(source), "-o", str(tmp_path / "kernels.cubin")],
        capture_output=True,
        text=True,
        check=True,
    )
    spotless = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    assert done.stderr.count(spotless) == done.stderr.count("bytes stack frame") == kernels
    # such as that products wait for each other, or that registers cannot be handed over
    assert "warning" not in done.stderr.lower()

"""The GPU benchmarks without a GPU: the same workloads, small, and the table of the plan."""

import shutil
import subprocess
from functools import partial

import pytest
import torch

from benchmarks import bench_gpu, gpu_small
from benchmarks import gpu_workloads as workloads
from benchmarks.gpu_plan import PLAN
from vlcal.ops import _triton

SMALL = {
    "knn": partial(workloads.knn, 5, 300, 64, 3),
    "calibrated_softmax": partial(workloads.softmax, 6, 40, 16, "accurate"),
    "calibrated_softmax, fast": partial(workloads.softmax, 6, 40, 16, "fast"),
    "cosine_cross_entropy": partial(workloads.loss, 6, 30, 16),
    "bin_statistics": partial(workloads.ece, 3000),
    "equal_mass_statistics": partial(workloads.equal_mass, 3000),
    "classwise_statistics": partial(workloads.classwise, 60, 7),
    "softmax_statistics": partial(workloads.softmax_stored, 60, 7),
}
needs_interpreter = pytest.mark.skipif(
    _triton.missing() is not None or not _triton.interpreted(), reason="Triton is not interpreted"
)


def test_every_comparison_has_its_run():
    assert {(comparison.op, comparison.workload) for comparison in PLAN} == set(workloads.RUNS)


@needs_interpreter
@pytest.mark.parametrize("name", SMALL)
def test_small_workloads_pass_their_gate_and_every_call_runs(name):
    run = SMALL[name]("cpu")
    planned = [comparison for comparison in PLAN if comparison.op == name.split(",")[0]]
    wanted = {peer.name for comparison in planned for peer in comparison.peers}
    assert wanted | {ours for comparison in planned for ours in comparison.ours} <= set(run.calls)
    run.gate("triton")
    for call in run.calls:
        # compilers take long, and CUDA C++ needs a GPU
        if call != "cuda" and "compile" not in call and not run.missing.get(call):
            run.calls[call](0)
            run.calls[call](1)


@needs_interpreter
def test_the_gate_refuses_a_wrong_backend(monkeypatch):
    run = SMALL["bin_statistics"]("cpu")
    from vlcal.ops._triton import binning

    right = binning.bin_statistics
    monkeypatch.setattr(
        binning, "bin_statistics", lambda *args: (right(*args)[0] + 1, right(*args)[1])
    )
    said = []
    assert not bench_gpu.passed(run, "triton", said.append)
    assert said[0].startswith("NOT TIMED: triton")


def test_without_a_gpu_nothing_is_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench_gpu, "TABLE", tmp_path / "GPU.md")
    assert bench_gpu.main([]) == 0
    assert "nothing is measured: no CUDA device was found" in capsys.readouterr().out
    assert not (tmp_path / "GPU.md").exists()


def test_the_table_is_that_of_the_plan_and_the_stored_results():
    assert bench_gpu.TABLE.read_text() == bench_gpu.table(bench_gpu.stored())


def test_a_figure_stands_beside_its_floor_and_prediction(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    comparison = next(c for c in PLAN if c.op == "bin_statistics")
    times = {"cuda": [0.2, 0.3, 0.25], "torch.bincount": [2.0, 3.0, 2.6]}
    peaks = {"cuda": 0.0, "torch.bincount": 4096.0}
    peer = next(peer for peer in comparison.peers if peer.name == "torch.bincount")
    taken = bench_gpu.row(comparison, "cuda", peer, times, peaks)
    path = bench_gpu.results_file()
    assert path.name == f"a-gpu-torch{torch.__version__.split('+')[0]}.csv"
    bench_gpu.save([taken], tmp_path / path.name)
    bench_gpu.save([{**taken, "workload": "another"}], tmp_path / path.name)
    rows = bench_gpu.load(tmp_path / path.name)
    assert len(rows) == 2
    text = bench_gpu.table(rows)
    (line,) = [line for line in text.splitlines() if "| cuda | torch.bincount |" in line]
    assert "| 0.116 (5 bytes a sample) | 0.17 | 0.25 (0.2..0.3) | 2.6 (2..3) | 10 (10..10.4) |" in (
        line
    )
    assert "| 5x | 10x | 0.0 / 4096.0 |" in line
    assert "| cuda | torchmetrics | 0.116 (5 bytes a sample) | 0.17 | not measured |" in text


def test_small_calls_take_what_each_backend_takes(monkeypatch):
    chosen = {"bin_statistics": gpu_small.CASES["bin_statistics"]}
    monkeypatch.setattr(gpu_small, "CASES", chosen)
    assert gpu_small.small_calls("native", 2) in (
        ["bin_statistics: thousand", "bin_statistics: one bin"],
        [],
    )
    assert gpu_small.small_calls("none of ours", 2) == []


def test_the_script_is_a_shell_script():
    if not (bash := shutil.which("bash")):
        pytest.skip("no bash was found")
    script = bench_gpu.HERE / "gpu_check.sh"
    subprocess.run([bash, "-n", str(script)], check=True)

"""The GPU benchmarks without a GPU: the same workloads, small, and the table of the plan."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import bench_gpu, gpu_clock, gpu_rows, gpu_small, gpu_worker
from benchmarks.gpu_plan import PLAN
from benchmarks.gpu_workloads import RUNS
from benchmarks.rows import HERE
from vlcal import ops
from vlcal.ops import _triton

needs_interpreter = pytest.mark.skipif(
    _triton.missing() is not None or not _triton.interpreted(), reason="Triton is not interpreted"
)
PLACES = {
    (at, ours): gpu_worker.name_of(at, ours) for at, one in enumerate(PLAN) for ours in one.ours
}


def place(name):
    return next(key for key, known in PLACES.items() if known.startswith(name))


def test_every_comparison_has_its_run():
    assert {(comparison.op, comparison.workload) for comparison in PLAN} == set(RUNS)


def test_every_gpu_backend_has_a_comparison():
    # proximity is knn and a mean, logit statistics and groups are parts of what is compared
    parts = {"proximity", "rank_vocabulary", "logit_statistics", "group_statistics"}
    on_gpu = {
        (op, backend.name)
        for op, backends in ops.OPS.items()
        for backend in backends
        if op not in parts and backend.name in ("triton", "cuda")
    }
    assert on_gpu == {(PLAN[at].op, ours) for at, ours in PLACES}


@needs_interpreter
@pytest.mark.parametrize("key", RUNS, ids=" ".join)
def test_small_workloads_pass_their_gate_and_every_call_runs(key):
    run = RUNS[key].on("cpu", small=True)
    (planned,) = (comparison for comparison in PLAN if (comparison.op, comparison.workload) == key)
    assert {peer.name for peer in planned.peers} | set(planned.ours) <= set(run.calls)
    run.gate("triton")
    for call in run.calls:
        # compilers take long, and CUDA C++ needs a GPU
        if call != "cuda" and "compile" not in call and not run.missing.get(call):
            run.calls[call](0)
            run.calls[call](1)


@needs_interpreter
def test_densities_of_the_peers_are_ours():
    calls = RUNS["kernel_density", "100k under 100k points"].on("cpu", small=True).calls
    for i in range(2):
        theirs = calls["torch in blocks"](i)
        torch.testing.assert_close(theirs, calls["triton"](i), rtol=1e-4, atol=0)


@needs_interpreter
def test_the_gate_refuses_a_wrong_backend(monkeypatch):
    from vlcal.ops._triton import binning

    right = binning.bin_statistics
    monkeypatch.setattr(
        binning, "bin_statistics", lambda *args: (right(*args)[0] + 1, right(*args)[1])
    )
    at, ours = place("bin_statistics")
    rows = gpu_worker.compare(gpu_clock.Host(), at, ours, "a GPU")
    assert [row["peer"] for row in rows] == [peer.name for peer in PLAN[at].peers]
    for row in rows:
        assert row["note"] == "not timed: AssertionError: triton differs from the float64 answer"
        assert row["p50_ms"] == row["peer_p50_ms"] == row["ratio"] == ""


class StandIn:
    """A run whose second peer fails."""

    def on(self, device, small):
        return gpu_clock.Run(
            {"triton": abs, "torch in blocks": abs, "torch.compile": self.fails}, str, {}
        )

    def fails(self, i):
        raise MemoryError("no room for\n10 | 20 GiB")


def test_a_peer_that_fails_is_a_note_and_the_others_have_their_times(monkeypatch):
    at, ours = place("kernel_density")
    monkeypatch.setitem(RUNS, (PLAN[at].op, PLAN[at].workload), StandIn())
    good, bad = gpu_worker.compare(gpu_clock.Host(), at, ours, "a GPU")
    assert float(good["p50_ms"]) >= 0 and float(good["ratio"]) >= 0 and not good["note"]
    assert bad["note"] == "MemoryError: no room for 10 / 20 GiB"
    assert bad["p50_ms"] == good["p50_ms"] and bad["peer_p50_ms"] == bad["ratio"] == ""
    assert bad["rounds"] == good["rounds"]


class Unwell:
    """A worker that dies, hangs or breaks its device at the first task, and works when new."""

    made = 0

    def __init__(self, gpu):
        type(self).made += 1
        self.fails, self.stopped = type(self).made == 1, False

    def ask(self, task, seconds):
        if self.fails and self.way != "breaks":
            raise EOFError if self.way == "dies" else TimeoutError("no answer in 75 s")
        return ["row"], not self.fails

    def stop(self):
        self.stopped = True


@pytest.mark.parametrize("way", ["dies", "hangs", "breaks"])
def test_what_breaks_a_worker_costs_only_its_own_rows(monkeypatch, way):
    monkeypatch.setattr(gpu_worker, "Worker", type("Worker", (Unwell,), {"way": way}))
    tasks = [("compare", *key) for key in list(PLACES)[:3]]
    taken = dict(gpu_worker.answers(tasks, "a GPU", time.perf_counter() + 1000))
    assert gpu_worker.Worker.made == 2
    assert taken[tasks[1]] == taken[tasks[2]] == ["row"]
    if way == "breaks":
        assert taken[tasks[0]] == ["row"]
    else:
        assert all("its process was ended" in row["note"] for row in taken[tasks[0]])


def test_nothing_is_begun_when_the_time_is_over(monkeypatch, capsys):
    monkeypatch.setattr(gpu_worker, "Worker", None)
    assert list(gpu_worker.answers([("compare", 0, "triton")], "a GPU", time.perf_counter())) == []
    assert "knn 1000 in 1M, d=512, K=10, triton: compare: no time is left" in (
        capsys.readouterr().out
    )


def test_a_killed_worker_is_seen_at_once():
    worker = gpu_worker.Worker(gpu_clock.Host.name)
    try:
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises((EOFError, OSError)):
            worker.ask(("compare", *place("knn")), 100)
    finally:
        worker.stop()


def test_without_a_gpu_nothing_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench_gpu, "measure", None)
    assert bench_gpu.main([]) == 0
    assert "nothing is measured: no CUDA device was found" in capsys.readouterr().out


@needs_interpreter
def test_a_rehearsal_leaves_the_tables_alone_and_writes_its_own(tmp_path, capfd):
    kept = {path: path.read_bytes() for path in (HERE / "GPU.md", *HERE.glob("results/*"))}
    assert bench_gpu.main(["-k", "softmax_statistics", "--rehearse", str(tmp_path)]) == 0
    assert "softmax_statistics 50k x 1000, triton: no kernels on a host" in capfd.readouterr().out
    (rows,) = (gpu_rows.load(path) for path in tmp_path.glob("*.csv"))
    assert [row["peer"] for row in rows] == ["torch, all four"] and rows[0]["p50_ms"]
    assert (tmp_path / "GPU.md").read_text() == gpu_rows.table(rows)
    assert kept == {path: path.read_bytes() for path in kept}


def test_the_table_is_that_of_the_plan_and_the_stored_results():
    assert (HERE / "GPU.md").read_text() == gpu_rows.table(gpu_rows.stored())


def test_a_figure_stands_beside_its_floor_and_prediction(tmp_path):
    comparison = next(c for c in PLAN if c.op == "bin_statistics")
    times = {"cuda": [0.2, 0.3, 0.25], "torch.bincount": [2.0, 3.0, 2.6]}
    peaks = {"cuda": 0.0, "torch.bincount": 4096.0}
    peer = next(peer for peer in comparison.peers if peer.name == "torch.bincount")
    taken = gpu_rows.row(comparison, "cuda", peer, "A GPU", None, times, peaks)
    path = gpu_rows.results_file(tmp_path, "A GPU")
    assert path.name == f"a-gpu-torch{torch.__version__.split('+')[0]}.csv"
    gpu_rows.save([taken], path)
    gpu_rows.save([{**taken, "workload": "another"}], path)
    rows = gpu_rows.stored(tmp_path)
    assert len(rows) == 2
    text = gpu_rows.table(rows)
    (line,) = [line for line in text.splitlines() if "| cuda | torch.bincount |" in line]
    assert "| 0.116 (5 bytes a sample) | 0.17 | 0.25 (0.2..0.3) | 2.6 (2..3) | 10 (10..10.4) |" in (
        line
    )
    assert "| 5x | 10x | 0.0 / 4096.0 |" in line
    assert "| cuda | torchmetrics | 0.116 (5 bytes a sample) | 0.17 | not measured |" in text


def test_figures_of_a_peer_that_is_gone_stay_and_those_of_a_wrong_kernel_do_not(tmp_path):
    comparison = next(c for c in PLAN if c.op == "softmax_statistics")
    (peer,) = comparison.peers
    times = {"triton": [0.1], peer.name: [1.0]}
    measured = gpu_rows.row(
        comparison, "triton", peer, "A GPU", None, times, dict.fromkeys(times, 0)
    )
    alone = gpu_rows.row(
        comparison, "triton", peer, "A GPU", "gone", {"triton": [0.1]}, {"triton": 0}
    )
    wrong = gpu_rows.row(comparison, "triton", peer, "A GPU", "not timed: wrong")
    path = tmp_path / "gpu.csv"
    gpu_rows.save([measured], path)
    gpu_rows.save([alone], path)
    assert gpu_rows.load(path) == [measured]
    gpu_rows.save([wrong], path)
    assert gpu_rows.load(path) == [wrong]
    assert (
        "| not measured | not measured | not measured | - | - | not measured | not timed: wrong |"
        in (gpu_rows.table([wrong]))
    )
    gpu_rows.save([alone], tmp_path / "new.csv")
    assert gpu_rows.load(tmp_path / "new.csv") == [alone]


def test_small_calls_take_what_each_backend_takes(monkeypatch):
    chosen = {"bin_statistics": gpu_small.CASES["bin_statistics"]}
    monkeypatch.setattr(gpu_small, "CASES", chosen)
    ran, failed = gpu_small.small_calls("native", 2)
    assert not failed and (not ran or ran[0] == "bin_statistics: thousand")
    assert gpu_small.main(["none of ours"]) == "gpu_small: no op can run on none of ours here"


@needs_interpreter
def test_small_calls_reach_every_op_and_send_gradients_back(monkeypatch):
    given = []
    monkeypatch.setattr(gpu_small, "run", lambda *args: given.append(args))
    ran, failed = gpu_small.small_calls("triton", 3)
    reached = {op for op, backends in ops.OPS.items() if "triton" in {b.name for b in backends}}
    assert {name.split(":")[0] for name in ran} == reached and not failed
    assert {kwargs.get("precision") for _, _, kwargs, _ in given} == {None, "fast"}
    monkeypatch.setattr(gpu_small, "run", lambda *args: 1 / 0)
    assert gpu_small.small_calls("triton", 3) == ([], ran)


BREAKS = """
import pytest, torch

def lost():
    raise RuntimeError("an illegal memory access was encountered")

@pytest.mark.parametrize("i", range(12))
def test_one(i, monkeypatch):
    if i == 5:
        torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, lost
    torch.cuda.is_initialized() and torch.cuda.synchronize()
"""


def test_a_test_that_breaks_the_device_is_the_only_one_that_fails(tmp_path):
    pytest.importorskip("xdist")
    (tmp_path / "test_breaks.py").write_text(BREAKS)
    options = [
        "-q",
        "-n",
        "1",
        "--dist",
        "worksteal",
        "-p",
        "benchmarks.gpu_tests",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", os.devnull, str(tmp_path)],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    # once by itself, once for the worker that it took along
    assert "2 failed, 11 passed" in done.stdout, done.stdout
    assert re.search(r"test_one\[5\]: call\n(.*\n)*?.*an illegal memory access", done.stdout)


FAILS = """#!/usr/bin/env bash
if [[ $1 != -c ]]; then echo "$(basename "$0") $*" >>"$CALLS"; fi
echo "1 failed in 0 s"
exit 1
"""
STEPS = {
    "build": ["python setup.py"] * 2,
    "tests": ["python -m pytest"],
    "sanitizers": ["python -m benchmarks.gpu_small", *["compute-sanitizer --tool"] * 3],
    "bench": ["python -m benchmarks.bench_gpu"],
}


@pytest.mark.parametrize("chosen", [(), *((step,) for step in STEPS)], ids=" ".join)
def test_no_step_of_the_check_costs_another(tmp_path, chosen):
    if not (bash := shutil.which("bash")):
        pytest.skip("no bash was found")
    for name in ("python", "compute-sanitizer"):
        (tmp_path / name).write_text(FAILS)
        (tmp_path / name).chmod(0o755)
    calls, logs = tmp_path / "calls", tmp_path / "logs"
    environment = {
        **os.environ,
        **{"CALLS": str(calls), "PYTHON": str(tmp_path / "python"), "GPU_CHECK_SECONDS": "300"},
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        [bash, str(HERE / "gpu_check.sh"), str(logs), *chosen],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 1 and "== failed: " in done.stdout, done.stderr
    made = calls.read_text().splitlines()
    wanted = [call for step in chosen or STEPS for call in STEPS[step]]
    assert len(made) == len(wanted)
    for call in set(wanted):
        assert sum(one.startswith(call) for one in made) == wanted.count(call)
    # as many as come back from another machine
    assert len(list(logs.iterdir())) <= 8 and {*logs.iterdir()} >= {logs / "backends.log"}

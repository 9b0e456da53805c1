"""The GPU benchmarks without a GPU: the same workloads, small, and the table of the plan."""

import csv
import os
import re
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu_first, gpu_stages
from benchmarks.gpu_plan import PLAN, stored_rows, table
from benchmarks.rows import HERE
from vlcal import ops
from vlcal.ops import _triton

needs_interpreter = pytest.mark.skipif(
    _triton.missing() is not None or not _triton.interpreted(), reason="Triton is not interpreted"
)


def test_every_gpu_backend_has_a_comparison():
    # these share the kernels of ops that have a comparison; equal-mass bins in Triton sort by torch
    parts = {"proximity", "rank_vocabulary", "logit_statistics", "group_statistics"}
    on_gpu = {
        (op, backend.name)
        for op, backends in ops.OPS.items()
        for backend in backends
        if op not in parts and backend.name in ("triton", "cuda")
    }
    planned = {(one.op, backend) for one in PLAN for backend in one.ours}
    assert on_gpu - {("equal_mass_statistics", "triton")} == planned


@needs_interpreter
@pytest.mark.parametrize("one", PLAN, ids=lambda one: f"{one.op} {one.workload}")
def test_small_workloads_pass_their_gate_and_every_call_runs(one):
    run = one.run("cpu")
    assert set(one.peers) | set(one.ours) <= set(run.calls)
    if "triton" in one.ours:
        run.gate("triton")
    for name, call in run.calls.items():
        # compilers take long, and the others need a GPU or are not installed
        if name != "cuda" and not re.search("compile|Liger|cut-", name):
            call(0)
            call(1)


@needs_interpreter
def test_densities_of_the_peer_are_ours():
    calls = next(one for one in PLAN if one.op == "kernel_density").run("cpu").calls
    for i in range(2):
        torch.testing.assert_close(
            calls["torch in blocks"](i), calls["triton"](i), rtol=1e-4, atol=0
        )


@needs_interpreter
def test_a_wrong_backend_is_timed_and_called_wrong(monkeypatch, tmp_path):
    from vlcal.ops._triton import binning

    right = binning.bin_statistics
    monkeypatch.setattr(
        binning, "bin_statistics", lambda *args: (right(*args)[0] + 1, right(*args)[1])
    )
    (rows,) = (
        list(rows())
        for item, rows in gpu_stages.compare(gpu_stages.Clock(True)).items()
        if item.startswith("bin_statistics")
    )
    assert rows[0]["note"] == "WRONG: triton differs from the float64 answer"
    assert rows[0]["p50_ms"] and "ratio" not in rows[0]


@needs_interpreter
def test_kernels_are_recorded_and_can_be_launched_again():
    items = gpu_stages.kernels(gpu_stages.Clock(True))
    (rows,) = (list(rows()) for item, rows in items.items() if item.startswith("softmax_stat"))
    assert [row["peer"] for row in rows] == ["softmax_rows"]
    assert float(rows[0]["p50_ms"]) > 0


WORKER = """
import sys, time
skipped = [name[7:] for name in sys.argv if name.startswith("--skip=")]
for item in "abcd":
    if item not in skipped:
        print("begin", item, flush=True)
        if item == "b":
            sys.exit(9)
        if item == "c":
            time.sleep(60)
"""


def test_an_item_that_ends_or_hangs_costs_no_other(monkeypatch, tmp_path):
    real = gpu_first.start
    monkeypatch.setattr(gpu_first, "ITEM_SECONDS", 2)
    monkeypatch.setattr(
        gpu_first, "start", lambda command, log: real([sys.executable, "-c", WORKER, *command], log)
    )
    gpu_first.run_timed("kernels", tmp_path, 30, rehearsed=True)
    with (tmp_path / "first.csv").open(newline="") as file:
        notes = {row["item"]: row["note"] for row in csv.DictReader(file)}
    assert notes == {
        "b": "its process was ended: 9",
        "c": "its process was ended: nothing for 2 s",
    }
    assert gpu_first.log_of(tmp_path, "kernels") == "begin d\n"


def test_without_a_gpu_nothing_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_first.main([str(tmp_path)]) == 1
    assert "nothing is measured: no CUDA device was found" in capsys.readouterr().out


def test_commands_name_tests_and_files_that_are_there(tmp_path):
    for stage in gpu_first.STAGES.keys() - gpu_first.TIMED.keys():
        for command in gpu_first.commands(stage, tmp_path).values():
            for word in command:
                assert not word.startswith("tests/") or (HERE.parent / word).exists()


def test_the_table_is_that_of_the_plan_and_the_stored_results():
    assert (HERE / "GPU.md").read_text() == table(stored_rows())


def test_a_figure_stands_beside_its_floor_and_prediction():
    row = dict.fromkeys(gpu_first.COLUMNS, "")
    row |= {"item": "bin_statistics ECE of 1e8 confidences, cuda", "peer": "torch.bincount"}
    row |= {"p20_ms": "0.2", "p50_ms": "0.25", "p80_ms": "0.3", "peer_p50_ms": "2.6"}
    row |= {"ratio": "10", "ratio_min": "10", "ratio_max": "10.4", "mib": "0.0"}
    row |= {"gpu": "A GPU", "peer_mib": "4096.0"}
    text = table([row])
    (line,) = [one for one in text.splitlines() if "| cuda | torch.bincount |" in one]
    assert line.endswith(
        "| 0.116 (5 bytes a sample) | - | 0.22 | 5x | 0.25 (0.2..0.3) | 2.6 | 10 (10..10.4) | "
        "0.0 / 4096.0 |  |"
    )
    assert "| cuda | torchmetrics | 0.116 (5 bytes a sample) | - | 0.22 | 20x | not meas" in text


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

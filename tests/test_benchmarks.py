"""The frame of the benchmarks: no time without a passed gate, rows that keep their machine."""

import pytest
import torch

from benchmarks import conftest, rows
from benchmarks.measure import Provider, interleaved, peak_mib
from benchmarks.workloads import Workload, clip_like
from vlcal import _native, ops

SMALL = Workload("small", "a test", n=10)
needs_native = pytest.mark.skipif(_native.missing() is not None, reason=str(_native.missing()))


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(conftest, "_PASSED", set())
    monkeypatch.setattr(conftest, "SETTINGS", ((1, "native"),))
    return conftest.Bench([], full=False, seconds=0.0, command="pytest")


@needs_native
def test_wrong_kernel_is_refused(bench, monkeypatch):
    right = _native.bin_statistics

    def one_sample_in_the_wrong_bin(confidence, correct, thresholds):
        table, bad = right(confidence, correct, thresholds)
        if len(confidence) > 1000:
            table[0] += torch.eye(table.shape[1], dtype=torch.int64)[0]
        return table, bad

    monkeypatch.setattr(_native, "bin_statistics", one_sample_in_the_wrong_bin)
    with pytest.raises(AssertionError, match="native differs from the float64 answer"):
        bench.check("bin_statistics")
    with pytest.raises(AssertionError, match="not checked; a kernel is timed after its gate only"):
        bench.compare("bin_statistics", SMALL, [Provider("vlcal", lambda: None)])
    assert bench.taken == []


def test_checked_kernel_gets_one_row_per_provider(bench):
    confidence, correct = torch.rand(100), torch.rand(100) > 0.5
    bench.check("bin_statistics", confidence, correct)
    ours = Provider("vlcal", lambda: ops.bin_statistics(confidence, correct).ece())
    absent = Provider("absent", lambda: 1 / 0, missing="not installed")
    twice = Provider("twice", lambda: (ours.run(), ours.run())[0], target=2)
    bench.compare("bin_statistics", SMALL, [ours, absent, twice], error=lambda ece: ece - ece)
    assert [row["provider"] for row in bench.taken] == ["vlcal", "twice"]
    assert all(row["machine"] and row["versions"] for row in bench.taken)
    assert float(bench.taken[1]["ratio"]) > 1
    assert bench.taken[1]["error"] == "0"


def test_wrong_value_is_refused(bench):
    with pytest.raises(AssertionError, match=r"pipeline: error 0.1 above the budget 1e-06"):
        bench.check_value("pipeline", 0.6, 0.5, 1e-6)


def test_rounds_are_interleaved():
    calls = []
    providers = [Provider(name, lambda name=name: calls.append(name)) for name in "ab"]
    timings = interleaved(providers, seconds=0.0, rounds=3)
    assert [len(timing.seconds) for timing in timings] == [3, 3]
    assert timings[0].ratios == [1.0, 1.0, 1.0]
    assert "".join(calls).count("ab") >= 3


def test_peak_memory_sees_what_torch_allocates():
    peak = peak_mib(Provider("128 MiB", lambda: torch.ones(16 << 20) * 1.0))
    if peak is None:
        pytest.skip("this system does not report a resettable memory peak")
    # from 32 MiB on the C library always maps new memory, so nothing freed before is reused
    assert 120 <= peak <= 136


def test_rows_replace_the_same_case_only(tmp_path):
    row = dict.fromkeys(rows.COLUMNS, "x")
    path = tmp_path / "results.csv"
    rows.save([row, {**row, "op": "y"}], path)
    rows.save([{**row, "p50_ms": "7"}], path)
    assert [(r["op"], r["p50_ms"]) for r in rows.load(path)] == [("x", "7"), ("y", "x")]


def test_readme_table_is_replaced_between_the_markers(tmp_path):
    own = {**dict.fromkeys(rows.COLUMNS, "1"), "op": "knn", "provider": "vlcal"}
    own["under_test"] = "vlcal"
    path = tmp_path / "README.md"
    path.write_text(f"before\n{rows.START}\nold\n{rows.END}\nafter\n")
    rows.update_readme(path, [own, {**own, "provider": "faiss", "ratio": "6.1"}])
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| knn | 1 | faiss | 6.1 (1..1) |" in text
    path.write_text("no markers")
    with pytest.raises(ValueError, match=r"README.md needs the markers"):
        rows.update_readme(path, [own])


def test_clip_like_rows_share_a_cone():
    features = clip_like(500, 512)
    cosine = (features @ features.T).fill_diagonal_(0).sum() / (500 * 499)
    assert cosine == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(500))


def test_a_target_that_was_missed_has_its_reason():
    row = {**dict.fromkeys(rows.COLUMNS, ""), "op": "new", "workload": "w", "target": "6"}
    ours = {**row, "gops": "40", "unit": "int8", "unit_peak": "50"}
    assert rows.reason(ours, {**row, "ratio": "6.1"}) == ""
    needed = rows.reason(ours, {**row, "ratio": "4"})
    assert needed == "needs 60 int8 GOP/s, does 40; the core's peak is 50"
    assert rows.reason(row, {**row, "ratio": "4", "op": "knn"}) == rows.REASONS["knn"]

"""The frame of a benchmark: gate, warm-up, interleaved rounds, peak memory, one CSV row each.

No benchmark asserts a time. What is asserted is that the kernel is right before it is timed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measure, rows
from benchmarks.measure import Provider, Timing
from benchmarks.peak import peaks
from benchmarks.workloads import Workload
from tests.ops.cases import CASES
from tests.oracle import assert_as_good_as_reference
from vlcal import ops

ROWS = pytest.StashKey[list[rows.Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks")
    group.addoption("--full", action="store_true", help="the large workloads and slow peers too")
    group.addoption("--seconds", type=float, default=None, help="time for one comparison")
    group.addoption("--update-readme", action="store_true", help="rewrite the tables of READMEs")
    group.addoption("--results", type=Path, default=None, help="CSV file instead of results/")


def pytest_configure(config: pytest.Config) -> None:
    # two workers, which tests have by default, would time each other
    config.option.dist, config.option.tx = "no", []
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
    # peers warn about themselves; our own warnings are the tests' business
    config.addinivalue_line("filterwarnings", "ignore")
    config.stash[ROWS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if any(getattr(value, "full", False) for value in params.values()):
            item.add_marker(pytest.mark.skip(reason="large workload: --full runs it"))


class Bench:
    """Checks an op, then times it beside its peers.

    Args:
        taken: where the rows go.
        full: large workloads and slow peers too.
        seconds: time for one comparison.
        command: how this was started, for the rows.
    """

    def __init__(self, taken: list[rows.Row], full: bool, seconds: float, command: str) -> None:
        self.taken, self.full, self.seconds, self.command = taken, full, seconds, command
        self.checked: set[tuple[str, str, int]] = set()

    def check(self, op: str, *args: Any, **kwargs: Any) -> None:
        """Gate: every case of the op and these inputs against the oracle, for every setting.

        Raises:
            AssertionError: the backend that would be timed is wrong.
        """
        function, cases, exact = CASES[op]
        backend = next(b.name for b in ops.OPS[op] if b.missing() is None)
        for threads, isa in SETTINGS:
            if (op, isa, threads) in _PASSED:
                self.checked.add((op, isa, threads))
                continue
            with measure.settings(threads, isa):
                for case in cases:
                    call, options = case.make()
                    assert_as_good_as_reference(function, call, options, backend, exact)
            _PASSED.add((op, isa, threads))
            self.checked.add((op, isa, threads))
        if args:
            assert_as_good_as_reference(function, args, kwargs, backend, exact)

    def check_value(self, op: str, got: Any, truth: Any, budget: float) -> None:
        """Gate for what is no op: a number or tensor within `budget` of the truth."""
        error = float((torch.as_tensor(got).double() - torch.as_tensor(truth).double()).abs().max())
        assert error <= budget, f"{op}: error {error:.3g} above the budget {budget:.3g}"
        self.checked.update((op, isa, threads) for threads, isa in SETTINGS)

    def compare(
        self,
        op: str,
        workload: Workload,
        providers: Sequence[Provider],
        error: Callable[[Any], float] | None = None,
        memory: bool = True,
        work: tuple[float, str] | None = None,
        rounds: int = 5,
    ) -> list[Timing]:
        """Time the providers in turn and keep one row each; the first is the one under test.

        Args:
            op: what was checked.
            workload: what it is run on.
            providers: first ours, then the others.
            error: distance of a provider's result from the truth, reported in its row.
            memory: measure the peak of each.
            work: operations (a multiply-add is two) and the unit that does ours, as in `peaks`.
            rounds: at least; fewer where a call takes many seconds.
        """
        first = providers[0]
        if (op, first.isa, first.threads) not in self.checked:
            raise AssertionError(f"{op}: not checked; a kernel is timed after its gate only")
        ready = [provider for provider in providers if self._can_run(provider)]
        errors = [self._first_run(provider, error) for provider in ready]
        timings = measure.interleaved(ready, self.seconds, rounds)
        for provider, timing, wrong in zip(ready, timings, errors, strict=True):
            row = self._row(op, workload, first, provider, timing)
            row["clock"], row["error"] = measure.clock_of(ready), wrong
            if work is not None:
                row["gops"] = _three(work[0] / timing.p50 / 1e9)
                row["unit"] = work[1]
                row["unit_peak"] = _three(peaks()[work[1]]) if work[1] in peaks() else ""
            if memory:
                peak = measure.peak_mib(provider)
                row["peak_mib"] = "" if peak is None else f"{peak:.1f}"
            self.taken.append(row)
        return timings

    def once(self, op: str, workload: Workload, provider: Provider) -> None:
        """Time one call, which is too long for rounds, and keep its row."""
        if (op, provider.isa, provider.threads) not in self.checked:
            raise AssertionError(f"{op}: not checked; a kernel is timed after its gate only")
        seconds, peak = measure.once(provider)
        row = self._row(op, workload, provider, provider, Timing([seconds], [1.0]))
        row["clock"] = "cpu"
        row["peak_mib"] = "" if peak is None else f"{peak:.1f}"
        self.taken.append(row)

    def _first_run(self, provider: Provider, error: Callable[[Any], float] | None) -> str:
        with measure.settings(provider.threads, provider.isa):
            result = provider.run()
        return "" if error is None else f"{error(result):.2g}"

    def _can_run(self, provider: Provider) -> bool:
        if provider.full and not self.full:
            return False
        if provider.missing:
            print(f"without {provider.name}: {provider.missing}")
        return provider.missing is None

    def _row(
        self, op: str, workload: Workload, first: Provider, provider: Provider, timing: Timing
    ) -> rows.Row:
        values = {
            "op": op,
            "workload": workload.name,
            "under_test": first.name,
            "provider": provider.name,
            "threads": provider.threads,
            "isa": provider.isa,
            "p20_ms": _three(timing.quantile(0.2) * 1e3),
            "p50_ms": _three(timing.p50 * 1e3),
            "p80_ms": _three(timing.quantile(0.8) * 1e3),
            "ratio": _three(sorted(timing.ratios)[len(timing.ratios) // 2]),
            "ratio_min": _three(min(timing.ratios)),
            "ratio_max": _three(max(timing.ratios)),
            "target": "" if provider.target is None else provider.target,
            "rounds": len(timing.seconds),
            "machine": rows.machine(),
            "versions": rows.versions(),
            "command": self.command,
        }
        return {name: str(values.get(name, "")) for name in rows.COLUMNS}


SETTINGS = ((1, "native"), (2, "native"), (1, "avx512"), (1, "avx2"), (1, "portable"))
_PASSED: set[tuple[str, str, int]] = set()  # cases are run once a session, workloads every time


def _three(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@pytest.fixture
def bench(pytestconfig: pytest.Config) -> Bench:
    full = pytestconfig.getoption("--full")
    seconds = pytestconfig.getoption("--seconds") or (6.0 if full else 1.5)
    given = " ".join(str(argument) for argument in pytestconfig.invocation_params.args)
    command = re.sub(r" --results[ =]\S+", "", f"pytest {given}")
    command = command.replace(f"{pytestconfig.rootpath}/", "")
    return Bench(pytestconfig.stash[ROWS], full, seconds, command)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    taken = config.stash.get(ROWS, [])
    if not taken:
        return
    path = config.getoption("--results") or rows.results_file()
    everything = rows.save(taken, path)
    terminalreporter.section(f"benchmarks: {rows.machine()}")
    terminalreporter.write_line(rows.versions())
    terminalreporter.write_line(rows.markdown(taken))
    if config.getoption("--update-readme"):
        rows.update_readme(rows.HERE / "README.md", everything)
        # the front page shows what has a target, ours alone beside it
        chosen = [row for row in everything if row["target"] or rows.is_own(row)]
        rows.update_readme(rows.HERE.parent / "README.md", chosen)

"""A plugin of pytest for tests on a GPU: what fails is shown at once, and what breaks stays small.

After an illegal access nothing runs on the device in that process any more. A worker of
pytest-xdist in which that happens ends itself: the test has failed, the others go on in a new one.
"""

import os

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    in_worker = hasattr(config, "workerinput")
    config.pluginmanager.register(Guard() if in_worker else Teller(config), "gpu_tests")


class Teller:
    """Failures as they come: a run that is cut short has none to show at its end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal:
            terminal.write_line(f"\n{report.nodeid}: {report.when}\n{report.longreprtext[-4000:]}")


class Guard:
    """Ends a worker whose device is lost, after the report of the test that lost it."""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and is_lost():
            os._exit(1)


def is_lost() -> bool:
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False

"""Without torchmetrics the same laws hold: the tests run again where it cannot be imported."""

import re
import subprocess
import sys
from pathlib import Path

LAWS = Path(__file__).with_name("test_objects.py")
HIDDEN = """
import sys
sys.modules["torchmetrics"] = None
import pytest
from vlcal.metrics.objects import CalibrationError
from vlcal.metrics.objects.accumulator import Accumulator
assert issubclass(CalibrationError, Accumulator)
with pytest.raises(ValueError, match="Error: dist_sync_on_step needs torchmetrics: pip install"):
    CalibrationError("logits", dist_sync_on_step=True)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "not evaluate", sys.argv[1]]))
"""
BROKEN = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import vlcal.metrics
print("torchmetrics" in sys.modules, "vlcal.metrics.objects" in sys.modules)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from vlcal.metrics.objects import Accuracy
print(*[w.message for w in caught if isinstance(w.message, vlcal.VlcalWarning)])
"""


def python(*arguments):
    return subprocess.run(
        [sys.executable, "-c", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=LAWS.parents[2],
    )


def test_every_law_holds_without_torchmetrics():
    done = python(HIDDEN, LAWS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 100
    assert "skipped" not in done.stdout


def test_torchmetrics_is_imported_on_demand_and_may_be_broken(tmp_path):
    (tmp_path / "torchmetrics.py").write_text("raise RuntimeError('operator nms is missing')")
    done = python(BROKEN, tmp_path)
    assert done.returncode == 0, done.stderr
    before, warning = done.stdout.splitlines()
    assert before == "False False"
    assert warning.count("cannot be imported (RuntimeError: operator nms is missing)") == 1

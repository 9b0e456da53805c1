"""The agreement tables: every line is there, and says what the tests of compat say."""

import pytest

from benchmarks import agreement
from benchmarks.agreement_arrays import seeded
from benchmarks.agreement_lines import (
    dac_lines,
    faiss_lines,
    netcal_lines,
    quiet,
    torchmetrics_lines,
)
from vlcal.compat import clip_calibration

DATA = seeded(300, 12)


@pytest.mark.parametrize(
    ("name", "compare", "count"),
    [
        ("torchmetrics", torchmetrics_lines, 3),
        ("netcal", netcal_lines, 6),
        ("faiss", faiss_lines, 2),
    ],
)
def test_installed_originals_agree(name, compare, count):
    with quiet():
        peer = pytest.importorskip(name, reason=f"{name} is not installed")
    lines = list(compare(DATA, peer))
    assert len(lines) == count
    assert [line.what for line in lines if float(line.difference) > 1e-5] == []


def test_every_name_of_the_published_code_has_a_line():
    # beside itself, where its own file is not at hand
    lines = list(dac_lines(DATA, clip_calibration))
    assert [line.what for line in lines if float(line.difference) != 0] == []
    text = agreement.table("published code of DAC", iter(lines))
    missing = [
        name for name in clip_calibration.__all__ if name not in text and name != "compute_acc_bin"
    ]
    assert missing == []


def test_a_failing_original_is_reported_as_such():
    lines = list(dac_lines(DATA, None))
    assert {line.original for line in lines} == {"fails (AttributeError)"}

"""The demo on the bundled model and icons, shortened to one epoch: files, rows, sameness."""

import json
import re
from dataclasses import replace

import pytest

from vlcal.demo import ABOUT, METHOD, demo

SHORT = replace(METHOD, recipe=replace(METHOD.recipe, epochs=1))

pytestmark = pytest.mark.filterwarnings("ignore:ts.*:vlcal.types.VlcalWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return demo(tmp_path_factory.mktemp("demo"), seeds=[1], shots=2, method=SHORT)


def test_zero_shot_accuracy_is_that_of_the_bundled_model(made):
    rows = {row["split"]: row for row in made.report.rows if row["tuner"] == "zero_shot"}
    assert rows["base"]["n"] + rows["new"]["n"] == 1422
    assert rows["base"]["metrics"]["accuracy"] == pytest.approx(0.866, abs=0.005)
    assert rows["new"]["metrics"]["accuracy"] == pytest.approx(0.877, abs=0.005)


def test_page_is_self_contained_and_says_what_it_shows(made):
    page = made.page.read_text()
    assert ABOUT.split(";")[0].split(",")[0] in page
    # no link, image, font or script from anywhere else
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    assert len(page) < 3_000_000
    for name in ("zero-shot", "coop", "ts", "dac"):
        assert name in page.lower()


def test_json_twin_holds_the_rows_and_classes(made):
    twin = json.loads(made.page.with_name("report.json").read_text())
    assert twin["rows"] == json.loads(json.dumps(made.report.rows))
    assert 100 < len(twin["classes"]) <= 139
    lines = made.page.with_name("results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == twin["rows"]


def test_a_second_demo_gives_the_same_numbers(made):
    again = demo(made.page.parent, seeds=[1], shots=2, method=SHORT)

    def numbers(report):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in report.rows]

    assert numbers(again.report) == numbers(made.report)
    assert again.report.classes == made.report.classes

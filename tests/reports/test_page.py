import dataclasses
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch

from tests.reports.result_rows import HOSTILE, classes, grid, measured, outcomes, row
from vlcal.reports import ClassRow, Report, cells, class_rows, read_report, write_report
from vlcal.reports.pictures import pictures, pool_bins
from vlcal.types import Outcomes


def report(**fields):
    return Report.from_rows(
        grid(), title=HOSTILE, about=f"{HOSTILE} & co", classes=classes(), **fields
    )


class Page(HTMLParser):
    """Tags, their attributes and all text, as a browser without script would have them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]
        assert not any(k.startswith("on") for k, _ in attrs)

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("out"), report(facts={HOSTILE: HOSTILE}))


def test_the_page_is_one_file_that_loads_nothing(page):
    text = page.read_text()
    parsed = Page(text)
    assert parsed.links == []
    assert not re.search(r"@import|url\((?!#)", text)
    assert set(re.findall(r"https?://[^\"' )]+", text)) == {"http://www.w3.org/2000/svg"}
    assert len(text) < 3_000_000
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]


def test_class_names_survive_as_text_and_never_as_tags(page):
    parsed = Page(page.read_text())
    assert parsed.tags.count("script") == 1
    assert "".join(parsed.text).count(HOSTILE) > 2 * len(classes())
    assert HOSTILE not in page.read_text()


def test_the_policy_allows_the_one_script_by_its_hash(page):
    import base64
    import hashlib

    text = page.read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_pictures_in_the_page_are_well_formed_and_share_no_id(page):
    text = page.read_text()
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    # reliability: two tuners on two halves; threshold and bins on two; four others
    assert len(drawings) == 4 + 2 * 2 + 4
    ids = [e.get("id") for d in drawings for e in ElementTree.fromstring(d).iter() if e.get("id")]
    assert len(ids) == len(set(ids))


def test_the_page_holds_headline_convention_and_every_class(page):
    text = "".join(Page(page.read_text()).text)
    assert "CoOp is over-confident on new classes by" in text
    assert "15 bins of equal width (lo, hi]" in text
    assert text.count("Convention standard") == 1
    assert "hash of the rows" in text


def test_the_same_report_gives_the_same_bytes(page, tmp_path):
    again = write_report(tmp_path, report(facts={HOSTILE: HOSTILE}))
    assert again.read_bytes() == page.read_bytes()


def test_a_stored_report_draws_the_same_page(page, tmp_path):
    stored = read_report(page.with_name("report.json"))
    assert stored == report(facts={HOSTILE: HOSTILE})
    assert write_report(tmp_path, stored).read_bytes() == page.read_bytes()


def test_numbers_are_stored_unrounded_and_nothing_is_nan(tmp_path):
    value = 1 / 3
    rows = [row(ece=value, piece=float("nan"))]
    path = write_report(tmp_path, Report.from_rows(rows)).with_name("report.json")
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["rows"][0]["metrics"] == {
        "accuracy": 0.7,
        "mean_confidence": 0.75,
        "ece": value,
        "piece": None,
    }


def test_lines_of_results_become_a_report(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("\ufeff" + "\n".join(map(json.dumps, grid())) + "\n", encoding="utf-8")
    assert read_report(path) == Report.from_rows(grid())


def test_cells_beside_the_rows_bring_every_picture_back(tmp_path, caplog):
    rows = [{**each, "key": str(i)} for i, each in enumerate(grid())]
    bare = [{k: v for k, v in each.items() if k != "cells"} for each in rows]
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, bare)))
    without = read_report(tmp_path)
    lines = [json.dumps({"key": row["key"], "cells": row["cells"]}) for row in rows]
    (tmp_path / "cells.jsonl").write_text("\n".join([*lines, "7", lines[0][:40]]))
    found = read_report(tmp_path)
    assert found.rows_with_cells == Report.from_rows(rows).rows_with_cells
    assert replace(found, cells=()) == without
    assert "cells.jsonl is not JSON and was left out" in caplog.text


def test_a_torn_line_is_left_out_and_counted(tmp_path, caplog):
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(map(json.dumps, grid())) + '\n{"key": "co')
    assert read_report(path).facts["unreadable lines"] == 1
    assert "line 9" in caplog.text


def broken(**changes):
    content = json.loads(report().to_json())
    for name, value in changes.items():
        content[name] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not readable JSON .truncated"),
        (report().to_json()[:-40], "is not readable JSON .truncated"),
        ("[" * 100_000, "is not readable JSON"),
        ('{"a": 1, "a": 2}', "names a key twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[]", "is not a report of this version"),
        ('{"format": "other"}', "is not a report of this version"),
        ('{"format": "vlcal-report-1"}', "missing or unknown fields: about, class_titles"),
        (broken(extra=1), "missing or unknown fields: extra"),
        (broken(title=3), "title must be a text"),
        (broken(headline="abc"), "headline must be a list of texts"),
        (broken(class_titles=["one"]), "class_titles must be two texts"),
        (broken(facts={"a": [1]}), "facts must be an object of texts and numbers"),
        (broken(notes=[["only"]]), "notes must be a list of .title, text."),
        (broken(rows=[]), "at least one result row"),
        (broken(rows={}), "rows must be a list"),
        (broken(cells={}), "cells must be a list"),
        (broken(cells=[None]), "cells must be one per row, or none"),
        (broken(cells=[7] * len(grid())), "cells must be of the grid"),
        (broken(rows=[{**row(), "bins": {"count": [1]}}]), "bins must hold count, confidence"),
        (broken(convention="dac2024"), "convention must be that of its rows"),
        (broken(classes=[{"name": 1}]), r"classes\[0\] must be an object of name, base"),
        (broken(classes=[{**dataclasses.asdict(classes()[0]), "n": True}]), r"classes\[0\] must"),
    ],
)
def test_hostile_reports_are_refused_with_a_reason(text, message, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_report(path)


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        ({"count": [1, 2], "correct": [1], "confidence": [0.5], "closed": "right"}, "equally long"),
        ({"count": [1], "correct": [2], "confidence": [0.5], "closed": "right"}, "0 <= correct"),
        ({"count": [1.5], "correct": [1], "confidence": [0.5], "closed": "right"}, "integers"),
        ({"count": [1], "correct": [1], "confidence": [0.5], "closed": "both"}, "closed|integers"),
        ({"count": [1], "correct": ["a"], "confidence": [0.5], "closed": "left"}, "must hold"),
        (7, "must hold"),
    ],
)
def test_stored_bins_are_checked(bins, message):
    with pytest.raises(ValueError, match=message):
        Report.from_rows([row(bins=bins)])


def test_files_that_are_not_there_or_not_text_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_report(tmp_path / "report.json")


def test_conventions_are_not_mixed_and_unknown_ones_need_a_definition():
    with pytest.raises(ValueError, match="cannot stand in one table"):
        Report.from_rows([row(), row("b", convention="dac2024")])
    with pytest.raises(ValueError, match="convention 'mine' is not one of standard, dac2024"):
        Report.from_rows([row(convention="mine")])
    assert (
        Report.from_rows([row(convention="mine")], definition="two bins").definition == "two bins"
    )


def test_rows_alone_make_a_page_without_pictures_of_what_is_absent(tmp_path):
    text = write_report(tmp_path, Report.from_rows([row()])).read_text()
    assert "<svg" not in text
    assert 'id="classes"' not in text


def test_many_methods_and_classes_stay_below_three_megabytes(tmp_path):
    rows = [
        measured(f"tuner{i}", calibrator, split, 0.1, seed)
        for i in range(8)
        for calibrator in ("none", "ts", "dac", "cac")
        for split in ("base", "new")
        for seed in (1, 2)
    ]
    many = [
        ClassRow(f"class {i}", i % 2 == 0, i % 50 + 1, 0.5, 0.6, 0.5, i / 5000) for i in range(5000)
    ]
    path = write_report(tmp_path, Report.from_rows(rows, classes=many))
    assert path.stat().st_size < 3_000_000
    assert "3,000 least affected classes are in report.json only" in path.read_text()


def test_seeds_share_images_so_the_first_is_drawn_and_datasets_are_added():
    rows = [
        {**measured("coop", "none", "new", 0.1, seed), "dataset": name}
        for seed in (1, 2)
        for name in ("a", "b")
    ]
    (group,) = pool_bins(Report.from_rows([*rows, rows[0]])).values()
    assert group["none"].n == 2 * rows[0]["n"]
    assert group["none"].count.tolist() == [2 * c for c in rows[0]["bins"]["count"]]


def test_pictures_of_lines_are_of_the_last_tuner_on_both_halves():
    titles = [picture.title for picture in pictures(report())]
    assert [title for title in titles if "threshold" in title or "bins?" in title] == [
        "What a threshold buys: CoOp on new classes",
        "What a threshold buys: CoOp on base classes",
        "Does the error depend on the bins? CoOp on new classes",
        "Does the error depend on the bins? CoOp on base classes",
    ]


def test_rows_without_cells_make_every_other_picture():
    bare = [{k: v for k, v in each.items() if k != "cells"} for each in grid()]
    titles = [picture.title for picture in pictures(Report.from_rows(bare, classes=classes()))]
    assert len(titles) == 4 + 4
    assert not any("threshold" in title or "bins?" in title for title in titles)


def test_a_line_of_thirty_images_has_no_length_and_is_not_drawn():
    few = [{**each, "cells": cells.stored(cells.cells_of(outcomes(n=40)))} for each in grid()]
    titles = [picture.title for picture in pictures(Report.from_rows(few))]
    assert not any("threshold" in title for title in titles)
    assert any("bins?" in title for title in titles)


def test_facts_name_model_and_prompt_where_the_rows_do():
    rows = [row(clip="ViT-B-16", template="a {}."), row("zero_shot", clip="ViT-B-16")]
    facts = Report.from_rows(rows).facts
    assert (facts["models"], facts["prompts"]) == ("ViT-B-16", "a {}.")
    assert "models" not in Report.from_rows([row()]).facts


def test_options_of_a_calibrator_are_another_panel():
    rows = [measured("coop", "none", "new", 0.1), measured("coop", "dac", "new", 0.1)]
    rows.append({**measured("coop", "dac", "new", 0.2), "calibrator_options": {"dac": {"k": 3}}})
    (group,) = pool_bins(Report.from_rows(rows)).values()
    assert {name: bins.n for name, bins in group.items()} == {
        "none": 1000,
        "dac": 1000,
        "dac, k 3": 1000,
    }


def test_cells_do_not_change_the_rows_nor_their_hash():
    bare = [{k: v for k, v in each.items() if k != "cells"} for each in grid()]
    without, with_cells = Report.from_rows(bare), Report.from_rows(grid())
    assert with_cells.rows == without.rows == tuple(bare)
    assert with_cells.facts["hash of the rows"] == without.facts["hash of the rows"]
    assert with_cells.rows_with_cells == grid()


def test_a_report_from_before_there_were_cells_is_read(tmp_path):
    content = json.loads(report().to_json())
    del content["cells"]
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert read_report(tmp_path / "report.json") == dataclasses.replace(report(), cells=())


def test_columns_that_would_be_empty_are_left_out(tmp_path):
    plain = [ClassRow("a", None, 3, 0.5, 0.5), ClassRow("b", None, 3, 0.5, 0.6)]
    text = write_report(tmp_path, Report.from_rows([row()], classes=plain)).read_text()
    head = text[text.index('id="classes"') :].split("</thead>")[0]
    assert head.count("<th ") == 5
    assert not re.search("Half|Proximity|Nearest", head)
    body = text[text.index('id="classes"') :].split("<tbody>")[1].split("</tbody>")[0]
    assert body.count("<td") == 2 * 5


def test_missing_jinja_is_one_sentence_with_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(
        ImportError, match=r"write_report needs jinja2: pip install 'vlcal\[report\]'"
    ):
        write_report(tmp_path, report())
    assert list(tmp_path.iterdir()) == []


def test_class_rows_by_hand():
    before = Outcomes(
        confidence=torch.tensor([0.9, 0.7, 0.5]),
        correct=torch.tensor([True, False, True]),
        predicted=torch.tensor([0, 0, 2]),
    )
    after = before._replace(confidence=torch.tensor([0.6, 0.4, 0.5]))
    first, last = class_rows(["a", "b", "c"], before, after, base=[True, True, False])
    assert (first.name, first.base, first.n, first.accuracy) == ("a", True, 2, 0.5)
    assert (first.gap, first.gap_after) == (pytest.approx(0.3), pytest.approx(0.0, abs=1e-7))
    assert (last.name, last.base, last.gap) == ("c", False, pytest.approx(-0.5))


def test_class_rows_need_the_same_predictions_on_both_sides():
    before = Outcomes(torch.tensor([0.5]), torch.tensor([True]), torch.tensor([0]))
    with pytest.raises(ValueError, match="must predict the same classes"):
        class_rows(["a", "b"], before, before._replace(predicted=torch.tensor([1])), base=True)

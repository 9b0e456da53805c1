import csv
import io

import pytest

from tests.reports.result_rows import row
from vlcal.reports import csv_text, latex, markdown, plain, result_table, summarize
from vlcal.reports.tables import Table, percent, summary_table


def toy():
    return [
        row("coop", "none", "base", 1, accuracy=0.80, ece=0.02),
        row("coop", "none", "base", 2, accuracy=0.84, ece=0.04),
        row("coop", "none", "new", 1, accuracy=0.60, ece=0.10),
        row("coop", "none", "new", 2, accuracy=0.60, ece=0.14),
        row("coop", "dac", "base", 1, accuracy=0.80, ece=0.03),
        row("coop", "dac", "base", 2, accuracy=0.84, ece=0.03),
        row("coop", "dac", "new", 1, accuracy=0.60, ece=0.05),
        row("coop", "dac", "new", 2, accuracy=0.60, ece=0.07),
    ]


def test_toy_table_by_hand():
    # H = 2 * 82 * 60 / 142 = 69.30; deviation of 80 and 84 with n - 1 is 2.83
    table = result_table(toy())
    assert table.header[2:] == (
        *("Accuracy base", "Accuracy new", "Accuracy H"),
        *("ECE base", "ECE new", "ECE mean"),
    )
    assert table.rows[0][2:5] == ("82.00 ± 2.83", "60.00 ± 0.00", "69.30")
    assert table.rows[0][5:] == ("3.00 ± 1.41", "12.00 ± 2.83", "7.50")
    assert table.rows[1][5:] == ("3.00 ± 0.00", "6.00 ± 1.41", "4.50")


def test_accuracy_is_joined_harmonically_and_errors_arithmetically():
    cells = summarize(toy()).lines[0].cells
    assert cells["accuracy", "H"].mean == pytest.approx(2 * 0.82 * 0.6 / 1.42)
    assert cells["ece", "mean"].mean == pytest.approx((0.03 + 0.12) / 2)
    assert ("ece", "H") not in cells


def test_best_is_highest_accuracy_and_lowest_error_with_ties():
    table = result_table(toy())
    best = {(i, table.header[j]) for i, j in table.best}
    assert (1, "ECE new") in best
    assert (0, "ECE new") not in best
    # equal means are equally good, so a column of equal values has no winner to point at
    assert not any(name.startswith("Accuracy") or name == "ECE base" for _, name in best)


def test_h_is_made_of_averages_not_averaged():
    rows = [
        row("coop", "none", half, dataset=name, accuracy=value)
        for name, base, new in (("a", 0.9, 0.1), ("b", 0.5, 0.5))
        for half, value in (("base", base), ("new", new))
    ]
    assert summarize(rows).lines[0].cells["accuracy", "H"].mean == pytest.approx(2 * 0.7 * 0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"convention": "dac2024"},
            "different conventions .dac2024, standard. cannot stand in one",
        ),
        ({"protocol": "cross_dataset"}, "rows of one protocol at a time"),
        ({"dataset": "b"}, "coop with none has no base row of b; averages need the same datasets"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        summarize([*toy()[:4], row("coop", "dac", "new", **change)])


def test_a_repeated_row_counts_once_and_a_contradiction_is_refused():
    assert summarize([*toy(), toy()[0]]) == summarize(toy())
    with pytest.raises(ValueError, match="two rows with different numbers"):
        summarize([*toy(), row("coop", "none", "base", 1, accuracy=0.1)])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "at least one result row"),
        ([{"tuner": "coop"}], "row 0: calibrator must be a text, got None"),
        ([{**row(), "metrics": {"ece": "3 %"}}], "row 0: metrics.ece must be a number or null"),
        ([{**row(), "metrics": None}], "row 0: metrics must be an object"),
        (["row"], "row 0 must be an object, got str"),
    ],
)
def test_broken_rows_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        summarize(bad)


def test_shots_are_told_apart_only_where_they_differ():
    rows = [row("coop", shots=4), row("coop", shots=16), row("zero_shot", shots=0)]
    tuners = [line.tuner for line in summarize(rows).lines]
    assert tuners == ["coop, shots 4", "coop, shots 16", "zero_shot"]


def test_lines_are_told_apart_by_what_differs_and_by_nothing_else():
    recipes = [{"epochs": 2, "lr": 0.1}, {"epochs": 5, "lr": 0.1}]
    rows = [row("coop", recipe=each, options={"n_ctx": 4}) for each in recipes]
    rows += [row("coop", recipe=recipes[0], options={"n_ctx": 16})]
    rows += [row("zero_shot"), row("zero_shot", clip="ViT-L-14")]
    rows += [row("kgcoop", "dac"), row("kgcoop", "dac", calibrator_options={"dac": {"k": 3}})]
    lines = [(line.tuner, line.calibrator) for line in summarize(rows).lines]
    assert lines == [
        ("coop, epochs 2, n_ctx 4", "none"),
        ("coop, epochs 5, n_ctx 4", "none"),
        ("coop, epochs 2, n_ctx 16", "none"),
        ("zero_shot", "none"),
        ("zero_shot, clip ViT-L-14", "none"),
        ("kgcoop", "dac"),
        ("kgcoop", "dac, k 3"),
    ]


def test_missing_metric_is_a_dash_and_never_a_mean_of_the_rest():
    rows = [row(seed=1, piece=0.1), row(seed=2, piece=None), row("b", piece=float("nan"))]
    assert [r[2] for r in result_table(rows, ("piece",)).rows] == ["–", "–"]  # noqa: RUF001


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2+3", "@SUM(A1)", " =1", "\t=1", "\r=1"])
def test_spreadsheets_see_no_formula(text):
    cells = next(csv.reader(io.StringIO(csv_text(Table((text,), ())), newline="")))
    assert cells == ["'" + text.replace("\t", " ").replace("\r", " ")]


@pytest.mark.parametrize("text", ["-0.94", "+3.1", "12", "1,000", "1e-3", "coop", ""])
def test_numbers_and_words_stay_as_they_are_in_csv(text):
    assert next(csv.reader(io.StringIO(csv_text(Table((text, "x"), ())))))[0] == text


def test_csv_gives_deviations_their_own_columns():
    text = csv_text(summary_table(summarize(toy()), separate=True))
    header, first = list(csv.reader(io.StringIO(text)))[:2]
    assert dict(zip(header, first, strict=True))["ECE new sd"] == "2.83"


def test_markdown_escapes_and_is_bold_where_best():
    text = markdown(Table(("A|b", "B", "x"), (("<b>", "c_d", "1"), ("*e*", "f", "2")), {(0, 2)}))
    assert text.splitlines() == [
        r"| A\|b | B | x |",
        "| --- | --- | ---: |",
        r"| &lt;b&gt; | c\_d | **1** |",
        r"| \*e\* | f | 2 |",
    ]


def test_latex_escapes_and_is_bold_where_best():
    text = latex(Table(("50% & #", "~^\\"), (("a_b", "${x}"),), frozenset({(0, 1)})))
    assert r"50\% \& \# & \textasciitilde{}\textasciicircum{}\textbackslash{} \\" in text
    assert r"a\_b & \textbf{\$\{x\}} \\" in text


def test_plain_text_lines_up():
    lines = plain(result_table(toy())).splitlines()
    assert len({line.rindex("±") for line in lines if "±" in line and "seeds" not in line}) == 1
    assert lines[3].rstrip().endswith("4.50*")


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.0371, "3.7"), (1.0, "100.0"), (-0.0001, "0.0"), (-0.02, "-2.0")]
)
def test_percent_has_one_rule(fraction, text):
    assert percent(fraction) == text

import re
import sys
import threading
from xml.etree import ElementTree

import pytest
import torch

from tests.reports.result_rows import HOSTILE, classes, grid, outcomes, row, statistics
from vlcal.ops import bin_statistics, group_statistics
from vlcal.reports import (
    ClassRow,
    cells_of,
    class_reliability,
    confidence_histograms,
    proximity_scatter,
    reliability_diagram,
    reliability_pair,
    risk_coverage,
    sensitivity,
    tradeoff,
)
from vlcal.reports.class_reliability import class_reliability_svg
from vlcal.reports.figures import OVER, UNDER, to_png, to_svg
from vlcal.reports.lines import looks
from vlcal.reports.reliability import reliability_panels
from vlcal.reports.scatter import proximity_scatter_svg

SVG = "{http://www.w3.org/2000/svg}"
DRAW = {
    "diagram": lambda: reliability_diagram(statistics(), title="CoOp"),
    "pair": lambda: reliability_pair(statistics(), statistics(1, over=0.0)),
    "scatter": lambda: proximity_scatter(classes()),
    "histograms": lambda: confidence_histograms((statistics(), statistics(1)), ("a", "b")),
    "tradeoff": lambda: tradeoff(grid()),
    "risk": lambda: risk_coverage([cells_of(outcomes(i)) for i in range(8)], list("abcdefgh")),
    "bins": lambda: sensitivity([cells_of(outcomes(i)) for i in range(8)], list("abcdefgh")),
    "classes": lambda: class_reliability(classes()),
}
every_picture = pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)


@every_picture
def test_svg_is_well_formed_and_the_same_every_time(draw):
    first, second = (to_svg(draw()[0], "name") for _ in range(2))
    assert first == second
    assert ElementTree.fromstring(first).tag == f"{SVG}svg"
    assert "metadata" not in first


@every_picture
def test_ids_carry_the_name_and_every_link_has_its_target(draw):
    text = to_svg(draw()[0], "my picture")
    ids = re.findall(r' id="([^"]+)"', text)
    links = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert len(ids) == len(set(ids))
    assert links == set(ids)
    assert all(name.startswith("my-picture-") for name in ids)


@every_picture
def test_png_begins_as_png(draw):
    assert to_png(draw()[0], dpi=40).startswith(b"\x89PNG")


def test_pyplot_and_settings_are_left_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    for draw in DRAW.values():
        to_svg(draw()[0], "x")
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_threads_draw_the_same_picture():
    expected, found = to_svg(DRAW["pair"]()[0], "x"), []
    threads = [
        threading.Thread(target=lambda: found.append(to_svg(DRAW["pair"]()[0], "x")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


def test_gap_boxes_add_up_to_the_error_on_the_picture():
    # two samples at 0.9 of which one is right, one at 0.3 that is right: gaps 0.4 and 0.7
    confidence = torch.tensor([0.9, 0.9, 0.3])
    bins = bin_statistics(confidence, torch.tensor([True, False, True]), 5)
    _, (ax, below) = reliability_diagram(bins)
    boxes = [p for p in ax.patches if p.get_hatch()]
    assert [b.get_height() for b in boxes] == pytest.approx([0.7, 0.4], abs=1e-6)
    assert [b.get_hatch()[0] for b in boxes] == ["\\", "/"]
    assert [b.get_alpha() for b in boxes] == [0.35, 0.35]
    texts = [text.get_text() for text in ax.texts]
    assert texts[texts.index("ECE") + 1] == "50.0 %"
    assert [p.get_height() for p in below.patches][1:5:3] == pytest.approx([1 / 3, 2 / 3])


def test_over_and_under_confidence_differ_in_color_and_hatch():
    from matplotlib.colors import to_hex

    _, (ax, _) = reliability_diagram(statistics(n=4000, over=0.0))
    looks = {(to_hex(p.get_edgecolor()), p.get_hatch()) for p in ax.patches if p.get_hatch()}
    assert looks == {(OVER, "////"), (UNDER, "\\\\\\\\")}


def test_a_diagram_fits_axes_of_the_caller():
    from matplotlib.figure import Figure

    figure = Figure()
    ax = figure.subplots(1, 2)[0]
    found, axes = reliability_diagram(statistics(), ax=ax, histogram=False, facts={"n": "many"})
    assert found is figure
    assert axes == (ax,)
    assert "many" in [text.get_text() for text in ax.texts]


def test_a_pair_shares_its_limits():
    _, (a, below_a, b, below_b) = reliability_pair(statistics(), statistics(1, n=50))
    assert (a.get_xlim(), a.get_ylim()) == (b.get_xlim(), b.get_ylim())
    assert below_a.get_ylim() == below_b.get_ylim()


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        (bin_statistics(torch.zeros(0), torch.zeros(0, dtype=torch.bool)), "at least one sample"),
        (
            group_statistics(torch.tensor([0]), torch.tensor([0.5]), torch.tensor([True]), 2),
            "must be intervals of confidence, got groups",
        ),
    ],
)
def test_bins_without_samples_or_edges_are_refused(bins, message):
    with pytest.raises(ValueError, match=message):
        reliability_diagram(bins)


@pytest.mark.parametrize("level", [0.02, 0.5, 0.99])
def test_names_of_lines_stay_inside_the_picture(level):
    confidence = torch.full((100,), level).clamp(0, 1)
    correct = torch.arange(100) < round(100 * min(1.0, max(0.0, level - 0.01)))
    figure, _ = reliability_panels([bin_statistics(confidence, correct)], ["x"])
    figure.canvas.draw()
    ax = figure.axes[-1]
    names = [text for text in ax.texts if text.get_text() in ("accuracy", "confidence")]
    assert len(names) == 2
    for name in names:
        box, frame = name.get_window_extent(), ax.get_window_extent()
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1


def test_titles_are_not_mathematics_and_need_no_glyphs():
    figure, _ = reliability_diagram(statistics(), title="$\\frac{ \u65e5 x_1$")
    assert "$\\frac{ \N{WHITE SQUARE} x_1$" in to_svg(figure, "x")


def test_hover_tells_name_gap_count_and_neighbor_as_text():
    svg = proximity_scatter_svg(classes())
    titles = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    assert len(titles) == 2 * len(classes())
    assert (
        f"a & b (new): \N{MINUS SIGN}10.0 points, 11 predictions, nearest base class {HOSTILE}"
        in titles
    )
    assert "<script" not in svg


def test_base_classes_are_hollow_and_signs_have_their_own_marks():
    _, (ax, _) = proximity_scatter(classes())
    marks = {c.get_gid(): c for c in ax.collections}
    assert set(marks) == {f"panel0-{s}-{b}" for s in ("over", "under") for b in (True, False)}
    assert all(len(c.get_facecolor()) == ("False" in gid) for gid, c in marks.items())


def test_every_class_is_at_its_confidence_and_accuracy():
    rows = [ClassRow("a", None, 10, 0.5, 0.9, 0.6), ClassRow("b", None, 5, 0.8, 0.7, 0.7)]
    _, panels = class_reliability(rows, ("before", "after"))
    found = [c.get_offsets().tolist() for ax in panels for c in ax.collections]
    assert found == [[[0.9, 0.5]], [[0.7, 0.8]], [[0.6, 0.5]], [[0.7, 0.8]]]
    before, after = panels
    assert (before.get_xlim(), before.get_ylim()) == (after.get_xlim(), after.get_ylim())
    assert before.get_xlim()[0] < 0.5 and before.get_xlim()[1] > 1


def test_classes_that_are_not_in_halves_are_filled_and_called_neither():
    rows = [ClassRow("a", None, 10, 0.5, 0.9), ClassRow("b", None, 5, 0.8, 0.7)]
    figure, (ax,) = class_reliability(rows)
    assert all(len(marks.get_facecolor()) for marks in ax.collections)
    svg = class_reliability_svg(rows)
    titles = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    assert titles == [
        "a: +40.0 points, 10 predictions",
        "b: \N{MINUS SIGN}10.0 points, 5 predictions",
    ]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["over-confident", "under-confident"]


def test_lines_of_many_methods_all_look_different():
    found = {tuple(map(str, looks(i).values())) for i in range(36)}
    assert len(found) == 36


def test_axes_in_percent_say_every_digit_they_need():
    _, ax = tradeoff([row("a", "none", half, ece=0.1) for half in ("base", "new")])
    labels = [ax.xaxis.get_major_formatter()(value, 0) for value in (0.025, 0.1, 0.3)]
    assert labels == ["2.5", "10", "30"]


def test_both_panels_share_their_limits():
    _, (before, after) = proximity_scatter(classes())
    assert before.get_ylim() == after.get_ylim()
    assert before.get_ylim()[0] < -0.2 < 0.3 < before.get_ylim()[1]


def test_scatter_needs_a_proximity():
    with pytest.raises(ValueError, match="needs a class with predictions and a proximity"):
        proximity_scatter([ClassRow("a", True, 3, 0.5, 0.5)])


def test_tradeoff_arrows_point_from_uncalibrated_to_calibrated():
    rows = [
        row("coop", c, s, ece=e)
        for c, s, e in (
            *(("none", "base", 0.02), ("none", "new", 0.10)),
            *(("dac", "base", 0.03), ("dac", "new", 0.06)),
        )
    ]
    _, ax = tradeoff(rows)
    (arrow,) = [text for text in ax.texts if getattr(text, "arrow_patch", None)]
    assert (arrow.xyann, arrow.xy) == ((0.02, 0.10), (0.03, 0.06))
    assert {"CoOp", "DAC"} <= {text.get_text() for text in ax.texts}


@pytest.mark.parametrize(
    "name",
    [
        "reliability_diagram",
        "proximity_scatter",
        "tradeoff",
        "risk_coverage",
        "sensitivity",
        "class_reliability",
    ],
)
def test_missing_matplotlib_is_one_sentence_with_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    draw = {
        "reliability_diagram": lambda: reliability_diagram(statistics()),
        "proximity_scatter": DRAW["scatter"],
        "tradeoff": DRAW["tradeoff"],
        "risk_coverage": DRAW["risk"],
        "sensitivity": DRAW["bins"],
        "class_reliability": DRAW["classes"],
    }[name]
    with pytest.raises(
        ImportError, match=rf"{name} needs matplotlib: pip install 'vlcal\[report\]'"
    ):
        draw()

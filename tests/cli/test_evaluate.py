"""vlcal evaluate: the same numbers as Python, one block per convention, reports of arrays."""

import json
import re

import numpy as np
import pytest
import torch

from tests.cli.running import flags, run
from vlcal.evaluation import evaluate
from vlcal.metrics import CONVENTIONS
from vlcal.ops import knn, proximity


def test_evaluate_says_what_python_says(arrays, capsys):
    files = "--logits", arrays / "l.npy", "--labels", arrays / "y.npy"
    code, out, err = run(capsys, "evaluate", *files, "--json")
    expected = evaluate(logits=np.load(arrays / "l.npy"), labels=np.load(arrays / "y.npy"))
    assert (code, err) == (0, "")
    assert json.loads(out) == expected.to_dict()


def test_arrays_are_named_inside_npz_files(arrays, capsys):
    both = arrays / "both.npz"
    words = "--logits", f"{both}:logits", "--labels", f"{both}:labels", "--json"
    one = run(capsys, "evaluate", *words)
    two = run(
        capsys, "evaluate", "--logits", arrays / "l.npy", "--labels", arrays / "y.npy", "--json"
    )
    assert one == two
    code, _, err = run(capsys, "evaluate", "--logits", both, "--labels", f"{both}:labels")
    assert code == 3
    assert "holds logits, labels; name one" in err


def test_convention_is_printed_beside_the_numbers(arrays, capsys):
    files = "--logits", arrays / "l.npy", "--labels", arrays / "y.npy"
    for name in ("standard", "dac2024"):
        _, out, _ = run(capsys, "evaluate", *files, "--convention", name)
        assert f"convention {name}" in out


def two(arrays):
    return "--logits", arrays / "l.npy", "--labels", arrays / "y.npy"


def test_several_conventions_get_numbers_and_a_block_of_their_own(arrays, capsys):
    names = ["standard", "dac2024", "ctpt20"]
    words = "evaluate", *two(arrays), "--convention", ",".join(names)
    _, out, _ = run(capsys, *words, "--json")
    logits, labels = np.load(arrays / "l.npy"), np.load(arrays / "y.npy")
    expected = [evaluate(logits=logits, labels=labels, convention=name) for name in names]
    assert json.loads(out) == {"conventions": [each.to_dict() for each in expected]}
    _, out, _ = run(capsys, *words)
    assert out == "\n\n".join(map(str, expected)) + "\n"


@pytest.mark.filterwarnings("ignore::vlcal.types.VlcalWarning")
def test_all_conventions_are_every_one_there_is(arrays, capsys):
    _, out, _ = run(capsys, "evaluate", *two(arrays), "--convention", "all", "--json")
    names = [each["convention"] for each in json.loads(out)["conventions"]]
    assert names == [each.name for each in CONVENTIONS]


def test_bad_rows_are_an_error_or_dropped_or_propagated(arrays, capsys):
    logits = np.load(arrays / "l.npy")
    logits[7, 1] = np.nan
    np.save(arrays / "nan.npy", logits)
    words = "evaluate", "--logits", arrays / "nan.npy", "--labels", arrays / "y.npy", "--json"
    code, out, err = run(capsys, *words)
    assert (code, out) == (3, "")
    assert "row 7" in err
    dropped = json.loads(run(capsys, *words, "--bad", "drop")[1])
    assert (dropped["n"], dropped["n_dropped"]) == (399, 1)
    propagated = json.loads(run(capsys, *words, "--bad", "propagate")[1])
    assert propagated["metrics"]["ece"] is None
    # a report of it says so instead of drawing what is not there
    code, _, _ = run(capsys, *words, "--bad", "propagate", "--report", arrays / "r")
    assert code == 0


def test_classwise_errors_are_measured_on_request(arrays, capsys):
    _, out, _ = run(capsys, "evaluate", *two(arrays), "--classwise", "--json")
    assert "classwise_ece" in json.loads(out)["metrics"]


def test_cosines_given_as_logits_are_refused_unless_trusted(models, capsys):
    np.save(models / "cosines.npy", np.load(models / "logits.npy") / 20)
    words = "evaluate", "--logits", models / "cosines.npy", "--labels", models / "labels.npy"
    code, _, err = run(capsys, *words)
    assert code == 3
    assert "like cosine similarities" in err
    assert run(capsys, *words, "--trust")[0] == 0


def test_features_give_the_numbers_of_their_logits_and_a_proximity(models, capsys):
    names = "image-features", "text-features", "labels"
    words = "evaluate", *flags(models, *names), "--json"
    near = "--val-image-features", models / "val_images.npy"
    _, out, _ = run(capsys, *words, *near)
    images, hold_out = (torch.from_numpy(np.load(models / f"{p}images.npy")) for p in ("", "val_"))
    expected = evaluate(
        logits=np.load(models / "logits.npy"),
        labels=np.load(models / "labels.npy"),
        proximity=proximity(images, hold_out, 5),
    )
    found = json.loads(out)["metrics"]
    assert found == pytest.approx(expected.metrics, rel=1e-4, abs=1e-5)
    _, out, _ = run(capsys, *words, *near, "--convention", "procal")
    distance = knn(images, hold_out, 10).distance
    expected = evaluate(
        logits=np.load(models / "logits.npy"),
        labels=np.load(models / "labels.npy"),
        proximity=(-(distance**2)).exp().mean(-1),
        convention="procal",
    )
    assert json.loads(out)["metrics"]["piece"] == pytest.approx(expected.metrics["piece"], rel=1e-3)


def test_the_report_of_arrays_shows_every_picture_and_draws_again(models, capsys):
    out = models / "report"
    words = "evaluate", *flags(models, "logits", "labels", "classes"), "--report", out
    code, text, _ = run(capsys, *words)
    assert code == 0
    assert text.rstrip().endswith(str(out / "report.html"))
    page = (out / "report.html").read_text()
    titles = re.findall("<h3>(.*?)</h3>", page)
    assert titles == [
        "The model on the test data",
        "Right and wrong predictions: The model on the test data",
        "What a threshold buys: The model on the test data",
        "Does the error depend on the bins? The model on the test data",
        "Reliability of every class",
    ]
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert run(capsys, "report", out / "report.json", "--out", models / "again")[0] == 0
    assert (models / "again" / "report.html").read_text() == page


def test_two_conventions_never_share_a_report(arrays, capsys):
    out = arrays / "out"
    words = *two(arrays), "--convention", "standard,dac2024", "--report", out
    _, text, _ = run(capsys, "evaluate", *words, "--plot", arrays / "both.svg")
    for name in ("standard", "dac2024"):
        assert str(out / name / "report.html") in text
        stored = json.loads((out / name / "report.json").read_text())
        assert {row["convention"] for row in stored["rows"]} == {name}
    assert "convention dac2024" in (arrays / "both.svg").read_text()


def test_confidences_alone_make_a_report_without_classes(arrays, capsys):
    np.save(arrays / "c.npy", np.linspace(0.3, 1, 400))
    np.save(arrays / "k.npy", np.arange(400) % 3 > 0)
    words = "--confidence", arrays / "c.npy", "--correct", arrays / "k.npy"
    assert run(capsys, "evaluate", *words, "--report", arrays / "r")[0] == 0
    page = (arrays / "r" / "report.html").read_text()
    assert "What a threshold buys" in page
    assert 'id="classes"' not in page


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--convention", "standard,standard"], "needs distinct names"),
        (["--convention", ","], "needs distinct names"),
        (["--convention", "mine"], "unknown name 'mine'; known: standard, dac2024"),
        (["--val-image-features", "x.npy"], "--val-image-features needs --image-features"),
        (["--val-image-features", "x.npy", "--proximity", "y.npy"], "not both"),
    ],
)
def test_flags_that_do_not_fit_are_refused(words, sentence, arrays, capsys):
    code, out, err = run(capsys, "evaluate", *two(arrays), *words)
    assert (code, out) == (3, "")
    assert sentence in err


def test_names_that_are_not_one_per_class_are_refused(arrays, models, capsys):
    words = *two(arrays), "--classes", models / "names.txt", "--report", arrays / "r"
    code, _, err = run(capsys, "evaluate", *words)
    assert code == 3
    assert "--classes must hold 5 names, one per class, got 6" in err

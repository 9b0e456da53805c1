"""vlcal calibrate: any calibrator, several, chains, saved ones, on arrays from any library."""

import json
import re
import warnings

import numpy as np
import pytest
import torch

from tests.cli.running import flags, run
from vlcal.calibrators import CALIBRATORS, load_calibrator
from vlcal.cli import main
from vlcal.evaluation import evaluate
from vlcal.types import Predictions

IMAGES = "logits", "labels", "image-features", "zero-shot-logits"
CLASSES = "text-features", "zero-shot-text-features", "classes"


def test_calibrate_two_arrays_halves_the_rows_and_lowers_ece(arrays, capsys):
    out = arrays / "out"
    words = "--logits", arrays / "l.npy", "--labels", arrays / "y.npy", "--out", out, "--json"
    code, text, _ = run(capsys, "calibrate", *words)
    before, after = json.loads(text)["rows"]
    assert code == 0
    assert before["n"] == after["n"] == 200
    assert after["metrics"]["accuracy"] == before["metrics"]["accuracy"]
    assert after["metrics"]["ece"] < before["metrics"]["ece"] / 2
    files = {path.name for path in out.iterdir()}
    assert files == {
        "calibrator.safetensors",
        "calibrated.safetensors",
        "report.html",
        "report.json",
    }
    stored = evaluate(predictions=Predictions.load(out / "calibrated.safetensors"))
    assert stored.metrics["ece"] == pytest.approx(after["metrics"]["ece"])


def test_calibrate_with_validation_arrays_measures_all_rows(arrays, undrawn, capsys):
    words = ["--logits", arrays / "l.npy", "--labels", arrays / "y.npy", "--out", arrays / "o"]
    half = np.load(arrays / "l.npy")[:100]
    np.save(arrays / "vl.npy", half)
    np.save(arrays / "vy.npy", np.load(arrays / "y.npy")[:100])
    words += ["--val-logits", arrays / "vl.npy", "--val-labels", arrays / "vy.npy", "--json"]
    code, text, _ = run(capsys, "calibrate", *words)
    assert code == 0
    assert {row["n"] for row in json.loads(text)["rows"]} == {400}


def test_set_reaches_the_constructor_and_unknown_options_are_refused(arrays, undrawn, capsys):
    words = ["--logits", arrays / "l.npy", "--labels", arrays / "y.npy", "--out", arrays / "o"]
    code, _, _ = run(capsys, "calibrate", *words, "--set", "highest=500", "--set", "lowest=0.5")
    assert code == 0
    code, _, err = run(capsys, "calibrate", *words, "--set", "hottest=5")
    assert code == 3
    assert "ts: unknown option 'hottest'; known: lowest, highest" in err


def test_calibrate_takes_what_predict_writes(tuned, tmp_path, undrawn, capsys):
    files = "--val", tuned / "val.safetensors", "--test", tuned / "new.safetensors"
    words = "--method", "dac", "--set", "k=3", "--out", tmp_path / "o", "--json"
    code, text, _ = run(capsys, "calibrate", *files, *words)
    before, after = json.loads(text)["rows"]
    assert code == 0
    assert after["metrics"]["accuracy"] == before["metrics"]["accuracy"]
    assert after["metrics"]["ece"] != before["metrics"]["ece"]


@pytest.fixture(scope="module")
def compared(models):
    """The folder of every calibrator, fitted on validation arrays, and what was said."""
    out = models / "compared"
    words = *flags(models, *IMAGES, *CLASSES, val=True), "--method", "all", "--out", out
    assert main([str(word) for word in ("calibrate", *words)]) == 0
    return out


def read(folder, name):
    return Predictions.load(folder / name / "calibrated.safetensors")


def test_all_is_every_calibrator_and_each_has_a_row_and_a_folder(compared):
    names = [cls.name for cls in CALIBRATORS]
    stored = (compared / "report.json").read_text()
    rows = json.loads(stored)["rows"]
    assert [row["calibrator"] for row in rows] == ["none", *names]
    assert not any("left out" in fact for fact in json.loads(stored)["facts"])
    folders = {path.name for path in compared.iterdir() if path.is_dir()}
    assert folders == set(names)
    assert "<script>alert" not in (compared / "report.html").read_text()


@pytest.mark.parametrize("cls", CALIBRATORS, ids=lambda cls: cls.name)
def test_a_row_is_measured_on_the_predictions_that_are_written(cls, compared):
    rows = json.loads((compared / "report.json").read_text())["rows"]
    (row,) = (row for row in rows if row["calibrator"] == cls.name)
    found = evaluate(predictions=read(compared, cls.name))
    assert row["metrics"]["ece"] == pytest.approx(found.metrics["ece"], abs=1e-9)
    if cls().keeps_argmax:
        assert row["metrics"]["accuracy"] == rows[0]["metrics"]["accuracy"]


@pytest.mark.parametrize("cls", CALIBRATORS, ids=lambda cls: cls.name)
def test_a_saved_calibrator_does_the_same_to_the_same_arrays(cls, compared, models, capsys):
    names = [name for name in (*IMAGES, *CLASSES) if name != "labels"]
    saved = "--calibrator", compared / cls.name / "calibrator.safetensors"
    out = models / f"applied-{cls.name}"
    words = *flags(models, *names), *saved, "--save-probs", "--out", out, "--json"
    code, text, _ = run(capsys, "calibrate", *words)
    assert code == 0
    assert json.loads(text) == {"out": str(out), "methods": [cls.name], "left_out": {}}
    again, first = read(models, f"applied-{cls.name}"), read(compared, cls.name)
    assert torch.equal(again.logits, first.logits)
    probs = np.load(out / "probs.npy")
    assert probs == pytest.approx(first.logits.double().softmax(-1).numpy(), abs=1e-6)


def test_features_without_logits_give_the_same_rows(compared, models, undrawn, capsys):
    images = "image-features", "labels"
    words = *flags(models, *images, *CLASSES, val=True), "--json"
    methods = "--method", "ts,dac,cac", "--out", models / "features"
    code, text, _ = run(capsys, "calibrate", *words, *methods)
    assert code == 0
    stored = json.loads((compared / "report.json").read_text())["rows"]
    expected = {row["calibrator"]: row["metrics"]["nll"] for row in stored}
    for row in json.loads(text)["rows"]:
        assert row["metrics"]["nll"] == pytest.approx(expected[row["calibrator"]], rel=1e-3)
    assert "same image features" in json.loads(text)["about"]


def test_chains_are_joined_by_plus_and_saved_as_one(models, capsys):
    words = flags(models, *IMAGES, *CLASSES, val=True)
    options = "--method", "ts+dac", "--set", "dac.k=3", "--out", models / "chain", "--json"
    code, text, _ = run(capsys, "calibrate", *words, *options)
    assert code == 0
    assert [row["calibrator"] for row in json.loads(text)["rows"]] == ["none", "ts+dac"]
    saved = load_calibrator(models / "chain" / "calibrator.safetensors")
    assert [step.name for step in saved.steps] == ["ts", "dac"]
    assert saved.steps[1].k == 3
    page = (models / "chain" / "report.html").read_text()
    assert "Calibration by TS+DAC" in page


def test_the_page_of_a_comparison_has_every_picture(compared):
    titles = re.findall("<h3>(.*?)</h3>", (compared / "report.html").read_text())
    assert [title for title in titles if not title.startswith("The model")] == [
        "Right and wrong predictions: The model on the test data",
        "What a threshold buys: The model on the test data",
        "Does the error depend on the bins? The model on the test data",
        "Reliability of every class",
        "Which classes are over-confident",
    ]


@pytest.mark.parametrize(
    ("method", "given", "sentence"),
    [
        ("dac", ["logits", "labels"], "dac: needs text_features: give --text-features"),
        ("cac", ["logits", "labels"], "cac: needs zero_shot: give --zero-shot-logits, or --zero-"),
        ("den", ["logits", "labels"], "den: needs image_features: give --image-features"),
        (
            "ts+dac",
            ["logits", "labels", "text-features", "zero-shot-logits"],
            "ts+dac: needs class_names: give --classes",
        ),
        ("ts", ["logits"], "--labels are needed to fit on one half"),
        (
            "cac",
            ["logits", "labels", "zero-shot-text-features"],
            "the untuned model needs --zero-shot-logits, or --zero-shot-text-features with",
        ),
    ],
)
def test_what_a_calibrator_needs_is_said_with_its_flag(method, given, sentence, models, capsys):
    words = *flags(models, *given), "--method", method, "--out", models / "no"
    code, out, err = run(capsys, "calibrate", *words)
    assert (code, out) == (3, "")
    assert sentence in err
    assert not (models / "no").exists()


def test_validation_arrays_have_flags_of_their_own(models, capsys):
    words = *flags(models, "logits", "labels", val=True), *flags(models, "image-features")
    code, _, err = run(capsys, "calibrate", *words, "--method", "den", "--out", models / "no")
    assert code == 3
    assert "den: needs validation image_features: give --val-image-features" in err


def test_new_classes_are_explained_and_left_out_of_all(models, undrawn, capsys):
    (models / "new.txt").write_text("\n".join(f"new {i}" for i in range(6)))
    words = [*flags(models, *IMAGES, *CLASSES[:2], val=True), "--classes", models / "new.txt"]
    words += ["--val-text-features", models / "text.npy", "--val-classes", models / "names.txt"]
    words += ["--val-zero-shot-text-features", models / "zs_text.npy"]
    code, out, err = run(capsys, "calibrate", *words, "--method", "hb", "--out", models / "no")
    assert (code, out) == (3, "")
    assert "'new 0' is not one of them" in err
    assert not (models / "no").exists()
    all_of = "--method", "all", "--out", models / "new"
    code, out, _ = run(capsys, "calibrate", *words, *all_of)
    assert code == 0
    stored = json.loads((models / "new" / "report.json").read_text())
    refused = {cls.name for cls in CALIBRATORS if not cls().handles_new_classes}
    assert {row["calibrator"] for row in stored["rows"]}.isdisjoint(refused)
    assert "hb was left out: hb: learned a map" in out
    assert "left out: hb" in stored["facts"]
    assert {each["base"] for each in stored["classes"]} == {False}


def test_options_of_several_calibrators_name_their_owner(models, capsys):
    words = *flags(models, *IMAGES, *CLASSES, val=True), "--out", models / "no"
    both = "--method", "ts,dac", "--set"
    code, _, err = run(capsys, "calibrate", *words, *both, "k=3")
    assert code == 3
    assert "--set k needs its calibrator, as in --set ts.k; known: ts, dac" in err
    code, _, err = run(capsys, "calibrate", *words, *both, "cac.k=3")
    assert code == 3
    assert "--set cac.k needs --method cac" in err


def test_probabilities_are_taken_by_their_logarithm_and_said_so(models, undrawn, capsys):
    logits = torch.from_numpy(np.load(models / "logits.npy"))
    np.save(models / "probs.npy", logits.softmax(-1).numpy())
    labels = flags(models, "labels")
    words = "--probs", models / "probs.npy", *labels, "--out", models / "p", "--json"
    text = json.loads(run(capsys, "calibrate", *words)[1])
    assert "taken as logits by their logarithm" in text["about"]
    words = *flags(models, "logits"), *labels, "--out", models / "p", "--json"
    expected = json.loads(run(capsys, "calibrate", *words)[1])
    for one, other in zip(text["rows"], expected["rows"], strict=True):
        assert one["metrics"]["nll"] == pytest.approx(other["metrics"]["nll"], rel=1e-4)


def test_fitting_on_the_test_arrays_warns_loudly(models, undrawn, capsys):
    given = flags(models, "logits", "labels")
    same = "--val-logits", models / "logits.npy", "--val-labels", models / "labels.npy"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = run(capsys, "calibrate", *given, *same, "--out", models / "same")
    assert code == 0
    assert "fitted on the very predictions it is applied to" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--logits", "a.npy", "--test", "b"], "give --logits and --labels, or --val and --test"),
        (["--test", "b"], "give --logits and --labels, or --val and --test"),
        (["--val", "b"], "give --logits and --labels, or --val and --test"),
        (["--logits", "a.npy", "--probs", "b.npy"], "give --logits or --probs, not both"),
        (["--text-features", "a.npy"], "give --logits, or --probs, or --image-features,"),
        (["--calibrator", "nope", "--logits", "a.npy"], "no such file: nope"),
        (["--calibrator", "x", "--set", "k=1", "--logits", "a"], "--set belongs to fitting"),
        (["--method", "ts+nope", "--logits", "a.npy"], "unknown name 'nope'; known: ts, dac"),
    ],
)
def test_flags_that_do_not_fit_are_refused(words, sentence, capsys):
    code, out, err = run(capsys, "calibrate", *words)
    assert (code, out) == (3, "")
    assert sentence in err

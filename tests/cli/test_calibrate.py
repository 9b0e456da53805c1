"""vlcal calibrate: any calibrator, several, chains, saved ones, on arrays from any library."""

import json

import numpy as np
import pytest

from tests.cli.running import run
from vlcal.evaluation import evaluate
from vlcal.types import Predictions


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


def test_calibrate_with_validation_arrays_measures_all_rows(arrays, capsys):
    words = ["--logits", arrays / "l.npy", "--labels", arrays / "y.npy", "--out", arrays / "o"]
    half = np.load(arrays / "l.npy")[:100]
    np.save(arrays / "vl.npy", half)
    np.save(arrays / "vy.npy", np.load(arrays / "y.npy")[:100])
    words += ["--val-logits", arrays / "vl.npy", "--val-labels", arrays / "vy.npy", "--json"]
    code, text, _ = run(capsys, "calibrate", *words)
    assert code == 0
    assert {row["n"] for row in json.loads(text)["rows"]} == {400}


def test_set_reaches_the_constructor_and_unknown_options_are_refused(arrays, capsys):
    words = ["--logits", arrays / "l.npy", "--labels", arrays / "y.npy", "--out", arrays / "o"]
    code, _, _ = run(capsys, "calibrate", *words, "--set", "highest=500", "--set", "lowest=0.5")
    assert code == 0
    code, _, err = run(capsys, "calibrate", *words, "--set", "hottest=5")
    assert code == 3
    assert "ts: unknown option 'hottest'; known: lowest, highest" in err


def test_calibrate_takes_what_predict_writes(tuned, tmp_path, capsys):
    files = "--val", tuned / "val.safetensors", "--test", tuned / "new.safetensors"
    words = "--method", "dac", "--set", "k=3", "--out", tmp_path / "o", "--json"
    code, text, _ = run(capsys, "calibrate", *files, *words)
    before, after = json.loads(text)["rows"]
    assert code == 0
    assert after["metrics"]["accuracy"] == before["metrics"]["accuracy"]
    assert after["metrics"]["ece"] != before["metrics"]["ece"]

"""The command line: data on stdout, sentences on stderr, exit codes, the same numbers as Python."""

import json
import re
import warnings

import numpy as np
import pytest

from vlcal.cli import _parser, main
from vlcal.commands import COMMANDS
from vlcal.evaluation import evaluate
from vlcal.types import Predictions


@pytest.fixture
def arrays(tmp_path):
    """Over-confident logits and labels of 400 samples and 5 classes, as two .npy files."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 400)
    logits = random.normal(size=(400, 5)) * 3
    logits[np.arange(400), labels] += 3
    np.save(tmp_path / "l.npy", (logits * 3).astype(np.float32))
    np.save(tmp_path / "y.npy", labels)
    np.savez(tmp_path / "both.npz", logits=(logits * 3).astype(np.float32), labels=labels)
    return tmp_path


def run(capsys, *words):
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


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


def test_options_reach_the_tuner_and_each_regularizer(capsys, monkeypatch, tmp_path):
    seen = []

    def stop(task, clip, method, **options):
        seen.append(method)
        raise ValueError("seen")

    monkeypatch.setattr("vlcal.commands.tuning.run", stop)
    given = ["n_ctx=4", "dor.top_k=100", "dor.weight=2", "dor.rank=max", "knowledge.weight=3"]
    sets = [word for each in given for word in ("--set", each)]
    words = ["--dor", "--regularizer", "knowledge", *sets, "--out", tmp_path]
    run(capsys, "tune", "coop", *words)
    run(capsys, "tune", *words, "--tuner", "coop")
    method, again = seen
    assert again == method
    assert method.label == "coop+dor+knowledge" and dict(method.options) == {"n_ctx": 4}
    assert method.regularizers == {
        "dor": {"top_k": 100, "weight": 2, "rank": "max"},
        "knowledge": {"weight": 3},
    }


def test_report_draws_stored_reports_again(arrays, capsys):
    out = arrays / "out"
    run(
        capsys,
        "calibrate",
        "--logits",
        arrays / "l.npy",
        "--labels",
        arrays / "y.npy",
        "--out",
        out,
    )
    code, text, _ = run(capsys, "report", out / "report.json", "--out", arrays / "again")
    assert code == 0
    assert str(arrays / "again" / "report.html") in text
    assert (arrays / "again" / "report.html").read_bytes() == (out / "report.html").read_bytes()


def test_info_names_every_op_and_backend(capsys):
    from vlcal.ops import OPS

    code, out, _ = run(capsys, "info", "--json")
    assert code == 0
    assert {op: set(b) for op, b in json.loads(out)["ops"].items()} == {
        op: {backend.name for backend in backends} for op, backends in OPS.items()
    }
    _, out, _ = run(capsys, "info")
    assert all(op in out for op in OPS)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["evaluate", "--logits", "nope.npy"], 3, "no such file: nope.npy"),
        (["evaluate"], 3, "give exactly one of logits, probs, confidence, predictions, got none"),
        (["evaluate", "--image-features", "x.npy"], 3, "go together"),
        (["calibrate"], 3, "give --logits and --labels, or --val and --test"),
        (["calibrate", "--method", "nope", "--logits", "a", "--labels", "b"], 3, "unknown name"),
        (["demo", "--seeds", "one"], 3, "seeds must be integers"),
        (["demo", "--seeds", "1,1"], 3, "seeds must be distinct"),
        (["tune", "coop", "--setting", "nope"], 3, "unknown setting 'nope'; known: dac2024"),
        (["tune", "coop", "--set", "nctx=4"], 3, "unknown option 'nctx'; known: n_ctx"),
        (["tune", "coop", "--regularizer", "dro"], 3, "unknown name 'dro'; known: dor, knowledge"),
        (["tune", "coop", "--dor", "--set", "dor.k=1"], 3, "dor: unknown option 'k'; known: vocab"),
        (["tune", "coop", "--set", "dor.top_k=1"], 3, "--set dor.top_k needs --regularizer dor"),
        (["tune", "coop", "--data", "nope"], 3, "unknown name 'nope'; known: icons"),
        (["predict", "nowhere"], 3, "no such file"),
        (["report", "nowhere.json"], 3, "no such file: nowhere.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_problems_with_the_data_end_with_a_sentence_and_code_3(words, code, sentence, capsys):
    got, out, err = run(capsys, *words)
    assert (got, out) == (code, "")
    assert sentence in err
    assert err.startswith("vlcal: ")


@pytest.mark.parametrize(
    "words", [["nope"], ["evaluate", "--nope", "1"], ["tune"], ["demo", "--shots", "x"], []]
)
def test_wrong_usage_ends_with_code_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: vlcal" in capsys.readouterr().err


def test_interruption_ends_with_130_and_the_way_on(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlcal.commands.tuning.run_demo", interrupted)
    code, _, err = run(capsys, "demo")
    assert code == 130
    assert "the same command goes on" in err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_flag_is_described(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command.__name__, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "{true,false}" not in out
    assert not re.search(r"--[a-z]+_", out)
    assert "given" not in re.findall(r"--?([a-z-]+)", out)
    options = _parser({command.__name__: command})._subcommands_action.choices[command.__name__]
    described = {action.dest: action.help for action in options._actions}
    assert [name for name, text in described.items() if not text or "==SUPPRESS==" in text] == []


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run folder of one short demo."""
    from tests.test_demo import SHORT
    from vlcal.demo import demo

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = demo(tmp_path_factory.mktemp("tuned"), seeds=[1], shots=2, method=SHORT)
    return made.results[0].folder


def test_predict_takes_new_classes_by_name(tuned, tmp_path, capsys):
    names, out = tmp_path / "names.txt", tmp_path / "p.safetensors"
    names.write_text("sun\nbell\n\nanchor\n")
    code, text, err = run(capsys, "predict", tuned, "--classes", names, "--out", out, "--json")
    assert (code, err) == (0, "")
    stored = Predictions.load(out)
    assert stored.class_names == ("sun", "bell", "anchor")
    assert set(stored.labels.tolist()) == {0, 1, 2}
    assert json.loads(text)["metrics"]["accuracy"] > 0.8
    names.write_text("no such class\n")
    code, _, err = run(capsys, "predict", tuned, "--classes", names, "--out", out)
    assert code == 3
    assert "no test image of icons is of the 1 classes" in err


def test_calibrate_takes_what_predict_writes(tuned, tmp_path, capsys):
    files = "--val", tuned / "val.safetensors", "--test", tuned / "new.safetensors"
    words = "--method", "dac", "--set", "k=3", "--out", tmp_path / "o", "--json"
    code, text, _ = run(capsys, "calibrate", *files, *words)
    before, after = json.loads(text)["rows"]
    assert code == 0
    assert after["metrics"]["accuracy"] == before["metrics"]["accuracy"]
    assert after["metrics"]["ece"] != before["metrics"]["ece"]

"""The command line: data on stdout, sentences on stderr, exit codes, the same numbers as Python."""

import json
import re

import pytest

from tests.cli.running import run
from vlcal.cli import _parser, main
from vlcal.commands import COMMANDS
from vlcal.data.images import as_rgb
from vlcal.data.registry import open_dataset
from vlcal.types import Predictions


def test_options_reach_the_tuner_each_regularizer_and_each_calibrator(
    capsys, monkeypatch, tmp_path
):
    seen = []

    def stop(task, clip, method, **options):
        seen.append((method, options["calibrator_options"]))
        raise ValueError("seen")

    monkeypatch.setattr("vlcal.commands.tuning.run", stop)
    given = [
        "n_ctx=4",
        "dor.top_k=100",
        "dor.weight=2",
        "dor.rank=max",
        "knowledge.weight=3",
        "dac.k=3",
    ]
    sets = [word for each in given for word in ("--set", each)]
    words = ["--dor", "--regularizer", "knowledge", *sets, "--out", tmp_path]
    run(capsys, "tune", "coop", *words)
    run(capsys, "tune", *words, "--tuner", "coop")
    (method, of_calibrators), again = seen
    assert again == (method, of_calibrators) and of_calibrators == {"dac": {"k": 3}}
    assert method.label == "coop+dor+knowledge" and dict(method.options) == {"n_ctx": 4}
    assert method.regularizers == {
        "dor": {"top_k": 100, "weight": 2, "rank": "max"},
        "knowledge": {"weight": 3},
    }


@pytest.mark.parametrize(
    ("words", "template"),
    [
        (["--data", "{}/"], "an icon of a {}."),  # the words the bundled model knows
        (["--data", "{}/", "--template", "a sign: {}"], "a sign: {}"),
        (["--data", "icons", "--template", "a sign: {}"], "a sign: {}"),
    ],
)
def test_data_of_your_own_are_read_in_the_words_of_the_model(
    words, template, capsys, monkeypatch, tmp_path
):
    icons = open_dataset("icons")
    for item in [i for i in icons.train if i.label < 2]:
        folder = tmp_path / item.class_name
        folder.mkdir(exist_ok=True)
        as_rgb(icons.read(item)).save(folder / f"{item.path.partition('#')[2]}.png")
    seen = []

    def stop(task, clip, method, **options):
        seen.append(task.tuning.classes.template)
        raise ValueError("seen")

    monkeypatch.setattr("vlcal.commands.tuning.run", stop)
    run(capsys, "tune", "coop", *[word.replace("{}/", f"{tmp_path}/") for word in words])
    assert seen == [template]


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


@pytest.mark.parametrize(
    ("name", "sign"), [("t.csv", "Tuner,Calibrator,"), ("t.md", "| Tuner |"), ("t.tex", "tabular")]
)
def test_a_table_is_written_as_its_name_ends(name, sign, tuned, tmp_path, undrawn, capsys):
    words = ["--metrics", "piece,nll", "--table", tmp_path / name, "--out", tmp_path]
    code, out, err = run(capsys, "report", tuned.parent.parent, *words)
    assert (code, err) == (0, "") and out.endswith(f"{name}\n") and "NLL base" in out
    text = (tmp_path / name).read_text()
    assert sign in text and "NLL base" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--table", "t.xls"], "--table must end in one of .csv, .md, .tex, got 't.xls'"),
        (["--metrics", "ecce"], "unknown metric 'ecce'; these rows hold accuracy, ace"),
    ],
)
def test_tables_that_cannot_be_are_refused(words, sentence, tuned, undrawn, capsys):
    code, _, err = run(capsys, "report", tuned.parent.parent, *words)
    assert code == 3 and sentence in err


def test_of_two_conventions_one_is_chosen(tuned, tmp_path, undrawn, capsys):
    lines = (tuned.parent.parent / "results.jsonl").read_text()
    both = tmp_path / "both.jsonl"
    both.write_text(lines + lines.replace('"convention": "standard"', '"convention": "dac2024"'))
    code, _, err = run(capsys, "report", both, "--out", tmp_path)
    assert code == 3 and "numbers of different conventions (dac2024, standard)" in err
    code, out, _ = run(capsys, "report", both, "--convention", "dac2024", "--out", tmp_path)
    assert code == 0 and "convention dac2024" in out
    code, _, err = run(capsys, "report", both, "--convention", "guo", "--out", tmp_path)
    assert code == 3 and "has rows of dac2024, standard, got convention 'guo'" in err


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
        (["tune", "coop", "--seeds", "1,2,1"], 3, "seeds must be distinct, got '1,2,1'"),
        (["tune", "coop", "--setting", "nope"], 3, "unknown setting 'nope'; known: dac2024"),
        (["tune", "coop", "--set", "nctx=4"], 3, "unknown option 'nctx'; known: n_ctx"),
        (["tune", "coop", "--regularizer", "dro"], 3, "unknown name 'dro'; known: dor, knowledge"),
        (["tune", "coop", "--dor", "--set", "dor.k=1"], 3, "dor: unknown option 'k'; known: vocab"),
        (["tune", "coop", "--set", "dor.top_k=1"], 3, "--set dor.top_k needs --regularizer dor"),
        (["tune", "coop", "--set", "sals.k=1"], 3, "--set sals.k needs --calibrators sals"),
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


def test_a_folder_of_runs_is_no_run(tuned, capsys):
    code, _, err = run(capsys, "predict", tuned.parent.parent)
    assert code == 3 and f"holds 1 tuned models, name one, as in {tuned}" in err


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

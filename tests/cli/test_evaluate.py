"""vlcal evaluate: the same numbers as Python, one block per convention, reports of arrays."""

import json

import numpy as np

from tests.cli.running import run
from vlcal.evaluation import evaluate


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

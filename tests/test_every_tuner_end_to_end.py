"""`vlcal tune` with every tuner on a folder of images: rows, regularizers, refusals, options."""

import inspect
import json
import math

import numpy as np
import pytest
from PIL import Image

from vlcal.cli import main
from vlcal.clip import CLIP
from vlcal.reports import page
from vlcal.tuners import TUNERS

WORDS = ("cat", "dog", "house", "tree", "car", "bird", "boat", "book", "cup", "polar_bear")
NAMES = [cls.name for cls in TUNERS]
OPEN = [cls.name for cls in TUNERS if cls.learns_text]
FIXED = [cls.name for cls in TUNERS if not cls.learns_text]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten classes of noise, and a small vocabulary beside them."""
    root = tmp_path_factory.mktemp("folder")
    random = np.random.default_rng(0)
    for part, count in (("train", 2), ("val", 2), ("test", 1)):
        for word in WORDS:
            (root / "noise" / part / word).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "noise" / part / word / f"{number}.png")
    (root / "words.txt").write_text("\n".join(("fox", "cat", "river", "moon", "star", "fork")))
    return root


@pytest.fixture
def tune(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLCAL_CACHE", str(tmp_path / "cache"))
    # pictures take longer than all the rest and have tests of their own
    monkeypatch.setattr(page, "render", lambda *_, **__: "")

    def run(*words):
        where = "--data", str(folder / "noise"), "--out", str(tmp_path / "out")
        code = main(["tune", *words, *where, "--shots", "1", "--epochs", "1", "--json"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.mark.filterwarnings("ignore:ts.*:vlcal.types.VlcalWarning")
@pytest.mark.parametrize("tuner", NAMES)
def test_rows_of_both_halves_with_dor_wherever_words_are_learned(tuner, tune, folder, tmp_path):
    dor = ["--dor", "--set", f"dor.vocabulary={folder / 'words.txt'}"]
    code, out, err = tune(tuner, *(dor if tuner in OPEN else []))
    assert code == 0, err
    label = f"{tuner}+dor" if tuner in OPEN else tuner
    rows = json.loads(out)["rows"]
    found = [(row["tuner"], row["calibrator"], row["split"]) for row in rows]
    each = [("zero_shot", "none")] * (tuner != "zero_shot")
    each += [(label, name) for name in ("none", "ts", "dac")]
    assert found == [(*pair, split) for split in ("base", "new") for pair in each]
    assert all(math.isfinite(row["metrics"]["nll"]) and row["n"] == 5 for row in rows)
    if tuner != "zero_shot":
        assert rows[0]["metrics"]["nll"] != rows[1]["metrics"]["nll"]
        used = {each["name"]: each["weight"] for each in rows[1].get("regularizers", [])}
        assert used == ({"dor": 8.0 if tuner == "coop" else 2.0} if tuner in OPEN else {})
    assert len(list((tmp_path / "out" / "runs").glob(f"*{label}*/model.safetensors"))) == 1


@pytest.mark.parametrize("tuner", FIXED)
@pytest.mark.parametrize("regularizer", ["dor", "knowledge"])
def test_a_tuner_without_words_refuses_before_anything_is_encoded(
    tuner, regularizer, tune, monkeypatch, tmp_path
):
    for name in ("encode_text", "encode_image"):
        monkeypatch.setattr(CLIP, name, lambda *_: pytest.fail("encoded"))
    code, out, err = tune(tuner, "--regularizer", regularizer)
    assert (code, out) == (1, "")
    assert err == f"vlcal: {regularizer}: the text features are not learned, nothing to hold back\n"
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("cls", TUNERS, ids=lambda cls: cls.name)
def test_an_unknown_option_lists_the_tuners_own(cls, tune):
    code, _, err = tune(cls.name, "--set", "n_ctxx=4")
    known = [name for name in inspect.signature(cls).parameters if name not in ("clip", "classes")]
    assert code == 3
    assert err == (
        f"vlcal: {cls.name}: unknown option 'n_ctxx'; known: {', '.join(known) or 'none'}\n"
    )


@pytest.mark.filterwarnings("ignore:ts.*:vlcal.types.VlcalWarning")
def test_precision_is_chosen_on_the_command_line(tune):
    code, out, _ = tune("coop", "--precision", "bf16")
    assert code == 0 and json.loads(out)["rows"][1]["recipe"]["precision"] == "bf16"
    code, _, err = tune("coop", "--precision", "fp8")
    assert code == 3 and "precision must be one of" in err


@pytest.mark.filterwarnings("ignore:ts.*:vlcal.types.VlcalWarning")
def test_memory_is_bounded_from_the_command_line(tune):
    code, _, err = tune("coop", "--set", "max_bytes=1000")
    assert code == 3 and "max_bytes must be at least" in err
    code, out, _ = tune("coop", "--set", "max_bytes=2000000")
    assert code == 0 and "max_bytes" not in json.loads(out)["rows"][1]["options"]

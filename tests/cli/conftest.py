"""Arrays of toy models as files, and a run folder of one short demo."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from vlcal._files import write_atomic


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


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    """A run folder of one short demo."""
    from tests.test_demo import SHORT
    from vlcal.demo import demo

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = demo(tmp_path_factory.mktemp("tuned"), seeds=[1], shots=2, method=SHORT)
    return made.results[0].folder


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A tuned and an untuned model on six classes as files, and the flags that name them.

    Images of validation are prefixed `val_`. The flags are of test and validation arrays.
    """
    folder = tmp_path_factory.mktemp("models")
    random = np.random.default_rng(1)
    zero_shot = _units(random.normal(size=(6, 16)))
    tuned = _units(zero_shot + 0.3 * random.normal(size=(6, 16)))
    np.save(folder / "text.npy", tuned)
    np.save(folder / "zs_text.npy", zero_shot)
    (folder / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    for prefix, n in (("", 240), ("val_", 300)):
        labels = random.integers(0, 6, n)
        images = _units(tuned[labels] + 0.35 * random.normal(size=(n, 16)))
        np.save(folder / f"{prefix}images.npy", images)
        np.save(folder / f"{prefix}labels.npy", labels)
        np.save(folder / f"{prefix}logits.npy", 20 * images @ tuned.T)
        np.save(folder / f"{prefix}zs_logits.npy", 20 * images @ zero_shot.T)
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without their page, which takes the longest to make."""

    def write(folder, report):
        write_atomic(Path(folder) / "report.json", report.to_json())
        return Path(folder) / "report.html"

    monkeypatch.setattr("vlcal.commands.calibrating.write_report", write)
    monkeypatch.setattr("vlcal.commands.measuring.write_report", write)


NAMES = ("<script>alert(1)</script>", "a & b", "ant", "bee", "cat", "dog")


def _units(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)

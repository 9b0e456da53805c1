"""Arrays of toy models as files, and a run folder of one short demo."""

import warnings

import numpy as np
import pytest


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

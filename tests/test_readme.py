"""What the README prints works as printed."""

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_arrays_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 400)
    logits = random.normal(size=(400, 5)).astype(np.float32) * 4
    logits[np.arange(400), labels] += 4
    np.save("l.npy", logits)
    np.save("y.npy", labels)
    exec(compile(BLOCKS[0], "README", "exec"), {})
    assert capsys.readouterr().out.count("convention standard") == 2


def test_ops_example_runs_as_printed(generator):
    def features(n):
        return F.normalize(torch.randn(n, 16, generator=generator), dim=-1)

    names = {name: features(50) for name in ("image_features", "text_features", "label_features")}
    scope = {**names, "queries": features(4), "gamma": torch.ones(50)}
    exec(compile(BLOCKS[1], "README", "exec"), scope)
    assert scope["nearest"].shape == (4, 10)
    assert scope["out"].topk_prob.shape == (50, 5)


def test_other_names_example_runs_as_printed():
    assert len(BLOCKS) == 3
    exec(compile(BLOCKS[2], "README", "exec"), {})


def test_every_environment_variable_is_listed():
    text = README.read_text()
    root = README.parent
    sources = [*root.glob("vlcal/**/*.py"), root / "setup.py"]
    used = {name for path in sources for name in re.findall(r"VLCAL_[A-Z]+", path.read_text())}
    assert used == set(re.findall(r"`(VLCAL_[A-Z]+)`", text))

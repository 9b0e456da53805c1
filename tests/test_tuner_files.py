"""Tuners on disk: read back strictly, refused with a sentence."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from vlcal.clip import tiny_clip
from vlcal.tuners import CoOp, load_tuner, save_tuner
from vlcal.types import ClassSet

BASE = ClassSet(("cat", "big_heavy airplane", "dog", "tree"))


@pytest.fixture(scope="module")
def clip():
    torch.set_num_threads(1)
    return tiny_clip(0)


@pytest.fixture
def saved(clip, tmp_path):
    save_tuner(CoOp(clip, BASE, n_ctx=3), tmp_path)
    return tmp_path


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_config_says_what_was_trained(clip, saved):
    about = json.loads((saved / "config.json").read_text())
    assert about["tuner"] == "coop" and about["format"] == 1
    assert about["hyperparameters"]["n_ctx"] == 3
    assert about["classes"] == list(BASE.names) and about["template"] == BASE.template
    assert about["clip"]["fingerprint"] == clip.fingerprint()


def test_refuses_another_model(saved):
    with pytest.raises(ValueError, match=r"belongs to CLIP 'tiny-0' .* got 'tiny-1'"):
        load_tuner(saved, tiny_clip(1))


def test_refuses_truncated_and_swapped_weights(clip, saved):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="truncated or not safetensors"):
        load_tuner(saved, clip)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"not the file that config\.json was written with"):
        load_tuner(saved, clip)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_tuner(saved, clip)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"context.ctx": torch.zeros(4, 32)},
        {"context.ctx": torch.zeros(3, 32), "more": torch.zeros(1)},
    ],
    ids=["missing", "shape", "extra"],
)
def test_refuses_other_keys_and_shapes(clip, saved, tensors):
    save_file(tensors, saved / "model.safetensors")
    edit(saved, model=hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=r"must hold exactly context\.ctx \[3, 32\], got"):
        load_tuner(saved, clip)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "not written by vlcal"),
        ({"more": 1}, "not written by vlcal"),
        ({"tuner": "os:system"}, "unknown tuner 'os:system'; known: zero_shot, coop"),
        ({"hyperparameters": {"nctx": 3}}, "unknown option 'nctx'; known: n_ctx, ctx_init"),
    ],
)
def test_refuses_a_foreign_config(clip, saved, changes, message):
    edit(saved, **changes)
    with pytest.raises(ValueError, match=message):
        load_tuner(saved, clip)


@pytest.mark.parametrize("text", ["[1, 2]", "{", "null"])
def test_refuses_what_is_not_a_config(clip, saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"is not JSON|not written by vlcal"):
        load_tuner(saved, clip)

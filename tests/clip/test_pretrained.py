"""Loading: the bundled model, local files, local caches, and what is refused."""

import socket
import sys

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from vlcal.clip import load, tiny_clip

SMALL = "vlcal-small"


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def architecture(monkeypatch, tmp_path):
    """The tiny model as an open_clip architecture, with two published tags and empty caches."""
    config = dict(tiny_clip(0).config)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, SMALL, config)
    tag = {"hf_hub": "someone/small-clip/", "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}
    tags = {"published": tag | {"quick_gelu": True, "resize_mode": "squash"}, "plain": tag}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, SMALL, tags)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return config


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in tiny_clip(5).model.state_dict().items()}, path)
    return path


def test_bundled_model_reads_icons():
    clip = load()
    assert (clip.name, clip.template, clip.embed_dim) == ("icons", "an icon of a {}.", 128)
    assert clip.preprocess.size == 32
    assert clip.logit_scale == pytest.approx(36, abs=1)
    tokens = clip.text.tokenize(["an icon of a house.", "an icon of a trash can."])
    torch.testing.assert_close(
        clip.encode_text(["an icon of a house.", "an icon of a trash can."]),
        clip.model.encode_text(tokens, normalize=True),
    )


def test_checkpoint_file_gives_its_weights(architecture, weights):
    clip = load(SMALL, checkpoint=weights)
    expected = tiny_clip(5).encode_text(["a cat"])
    torch.testing.assert_close(clip.encode_text(["a cat"]), expected)
    assert clip.preprocess.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


def test_tag_decides_preprocessing_and_activation(architecture, weights):
    clip = load(SMALL, pretrained="published", checkpoint=weights)
    assert clip.preprocess.mean == (0.1, 0.2, 0.3)
    assert clip.preprocess.resize_mode == "squash"
    assert isinstance(clip.model.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
    assert clip.fingerprint() != load(SMALL, checkpoint=weights).fingerprint()


def test_cached_weights_are_found(architecture, weights, tmp_path):
    commit = "0" * 40
    folder = tmp_path / "hub" / "models--someone--small-clip"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    (snapshot / "open_clip_model.safetensors").write_bytes(weights.read_bytes())
    hub_cache = str(tmp_path / "hub")
    import huggingface_hub.file_download

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", hub_cache)
        clip = load(SMALL, pretrained="plain")
    torch.testing.assert_close(clip.encode_text(["a cat"]), tiny_clip(5).encode_text(["a cat"]))


def test_missing_weights_name_file_folder_and_way_out(architecture, tmp_path):
    with pytest.raises(FileNotFoundError, match="looked for open_clip_model") as caught:
        load(SMALL, pretrained="published")
    for part in ("someone/small-clip", str(tmp_path / "hub"), "--download", "checkpoint=FILE"):
        assert part in str(caught.value)


def test_offline_mode_forbids_the_download(architecture, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE forbids"):
        load(SMALL, pretrained="published", download=True)


def test_download_happens_only_when_asked(architecture, weights, monkeypatch):
    asked = []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: asked.append(tag) or weights)
    with pytest.raises(FileNotFoundError):
        load(SMALL, pretrained="published")
    assert not asked
    load(SMALL, pretrained="published", download=True)
    assert [tag["hf_hub"] for tag in asked] == ["someone/small-clip/"]


def test_pickles_are_read_as_tensors_only(architecture, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    path = tmp_path / "weights.pt"
    torch.save(tiny_clip(5).model.state_dict(), path)
    load(SMALL, checkpoint=path, trust=True)
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(ValueError, match="does not hold readable weights"):
        load(SMALL, checkpoint=path, trust=True)


def test_pickles_need_trust_before_torch_2_10(architecture, tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    torch.save(tiny_clip(5).model.state_dict(), path)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ValueError, match="CVE-2026-24747"):
        load(SMALL, checkpoint=path)
    load(SMALL, checkpoint=path, trust=True)


def test_refuses_a_tag_trained_with_the_other_activation(architecture, weights):
    architecture["quick_gelu"] = True
    with pytest.raises(ValueError, match="not trained with QuickGELU"):
        load(SMALL, pretrained="plain", checkpoint=weights)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"name": "ViT-B-61", "pretrained": "openai"},
            ValueError,
            "unknown model 'ViT-B-61'; close: ",
        ),
        ({"name": "hf-hub:a/b"}, ValueError, "resolved on a hub"),
        ({"name": "ViT-B-16"}, ValueError, "needs weights: checkpoint=FILE, or pretrained=one of"),
        (
            {"name": "ViT-B-16", "pretrained": "nope"},
            ValueError,
            "no weights 'nope'; known: openai",
        ),
        ({"name": "roberta-ViT-B-32", "checkpoint": "x"}, ValueError, "Hugging Face hub"),
        ({"name": "ViT-B-16", "checkpoint": "gone.pt"}, FileNotFoundError, "no such checkpoint"),
        ({"name": "icons", "pretrained": "openai"}, ValueError, "brings its weights"),
    ],
)
def test_refuses_with_a_reason(options, error, message):
    with pytest.raises(error, match=message):
        load(**options)


def test_refuses_a_foreign_or_truncated_file(architecture, weights, tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"something": torch.zeros(3)}, foreign)
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(weights.read_bytes()[:5000])
    for path in (foreign, truncated):
        with pytest.raises(ValueError, match="does not hold readable weights of vlcal-small"):
            load(SMALL, checkpoint=path)
    wrong = tmp_path / "weights.npz"
    wrong.write_bytes(b"")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        load(SMALL, checkpoint=wrong)


def test_broken_torchvision_is_one_sentence(monkeypatch):
    def broken(module, *args):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("vlcal._optional.importlib.import_module", broken)
    with pytest.raises(ImportError, match=r"load\('icons'\) needs open_clip.*torchvision::nms"):
        load()
    assert "open_clip" in sys.modules  # the import was refused by the test, not by the machine


def test_a_name_with_a_slash_is_understood():
    with pytest.raises(ValueError, match="ViT-B-32 needs weights"):
        load("ViT-B/32")

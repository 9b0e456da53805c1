"""Feature files made elsewhere are read without unpickling, or refused in a sentence."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vlcal.data import read_features
from vlcal.data.features import read_arrays
from vlcal.types import Predictions

RNG = np.random.default_rng(0)
IMAGES, TEXTS = RNG.normal(size=(6, 4)), RNG.normal(size=(3, 4))
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        return tmp_path / "x.npz"

    return write


def unit(rows):
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("labels", ["int8", ">i2", "uint64"])
def test_every_number_format_becomes_predictions(npz, dtype, labels):
    path = npz(test_x=IMAGES.astype(dtype), text_x=TEXTS, test_y=LABELS.astype(labels))
    found = read_features(path, image_features="test_x", text_features="text_x", labels="test_y")
    assert torch.allclose(found["image_features"], unit(IMAGES), atol=1e-3)
    assert found["labels"].dtype == torch.int64 and found["labels"].tolist() == LABELS.tolist()
    assert len(Predictions(**found, logit_scale=100.0)) == 6


def test_npy_holds_image_features_alone(tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(IMAGES))
    found = read_features(tmp_path / "x.npy")
    assert set(found) == {"image_features"}
    assert torch.allclose(found["image_features"], unit(IMAGES))


def test_safetensors_in_bfloat16(tmp_path):
    images = torch.from_numpy(IMAGES).bfloat16()
    save_file(
        {"image_features": images, "labels": torch.tensor(LABELS)}, tmp_path / "x.safetensors"
    )
    found = read_features(tmp_path / "x.safetensors", normalize=False)
    assert torch.equal(found["image_features"], images.float())
    assert found["labels"].tolist() == LABELS.tolist()


def with_nan(value):
    return np.where(np.arange(24).reshape(6, 4) == 9, value, IMAGES)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": IMAGES}, r"has no array 'image_features'; it has \['features'\]"),
        ({"image_features": IMAGES[0]}, r"floating point matrix, got float64 \(4,\)"),
        ({"image_features": IMAGES[:0]}, r"floating point matrix, got float64 \(0, 4\)"),
        ({"image_features": IMAGES.astype(int)}, "floating point matrix, got int64"),
        ({"image_features": IMAGES.astype(complex)}, "floating point matrix, got complex128"),
        ({"image_features": IMAGES.astype(str)}, "floating point matrix, got <U"),
        ({"image_features": with_nan(np.nan)}, "must be finite, got 1 .* the first in row 2"),
        ({"image_features": with_nan(np.inf)}, "must be finite"),
        ({"image_features": IMAGES * (np.arange(6) != 3)[:, None]}, "row 3 must not be all zeros"),
        ({"image_features": IMAGES, "text_features": TEXTS[:, :3]}, "agree in D, got 4 and 3"),
        ({"image_features": IMAGES, "labels": LABELS[:5]}, r"labels must be \[N\] = \[6\]"),
        ({"image_features": IMAGES, "labels": LABELS.astype(float)}, "integers, got float64"),
        ({"image_features": IMAGES, "labels": np.eye(6, dtype=int)}, r"labels must be \[N\]"),
        (
            {"image_features": IMAGES, "text_features": TEXTS, "labels": LABELS + 1},
            r"labels must be in 0\.\.2, got 3 in row 2",
        ),
    ],
)
def test_refuses_wrong_arrays(npz, arrays, message):
    with pytest.raises(ValueError, match=message):
        read_features(npz(**arrays))


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def npy_bytes(array, allow_pickle=False):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


HUGE = npy_bytes(IMAGES).replace(b"(6, 4), }" + b" " * 12, b"(6000000000000, 4), }")
TORN = npy_bytes(IMAGES).replace(b"(6, 4), }", b"(6, 4),  ")
OBJECTS = npy_bytes(np.array([Bomb()], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npy", b""),
        ("x.npy", npy_bytes(IMAGES)[:50]),
        ("x.npy", npy_bytes(IMAGES)[:-8]),
        ("x.npy", pickle.dumps(Bomb())),
        ("x.npy", OBJECTS),
        ("x.npy", HUGE),
        ("x.npy", TORN),
        ("x.npz", b""),
        ("x.npz", zipped(image_features=npy_bytes(IMAGES))[:200]),
        ("x.npz", zipped(image_features=npy_bytes(IMAGES)[:-8])),
        ("x.npz", zipped(image_features=OBJECTS)),
        ("x.npz", zipped(image_features=HUGE)),
        ("x.npz", zipped(image_features=TORN)),
        ("x.npz", pickle.dumps(Bomb())),
        ("x.safetensors", b""),
        ("x.safetensors", (1 << 60).to_bytes(8, "little") + b"{}"),
        ("x.safetensors", pickle.dumps(Bomb())),
    ],
)
def test_refuses_damaged_and_hostile_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"read_arrays: .*{name} cannot be read: ."):
        read_features(tmp_path / name)


def test_the_huge_header_is_really_huge():
    assert b"6000000000000" in HUGE and len(HUGE) == len(npy_bytes(IMAGES))


def test_refuses_archives_that_unpack_to_too_much(npz, monkeypatch):
    monkeypatch.setattr("vlcal.data.features.MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"unpacks to .* bytes, more than 100"):
        read_features(npz(image_features=IMAGES))


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_features(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"must end in one of \.npz, \.npy, \.safetensors"):
        read_features(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("x.pt", r"may hold pickled code, numpy\.save\('FILE\.npy', tensor\.numpy\(\)\)"),
        ("x.csv", r"numpy\.loadtxt\('FILE\.csv', delimiter=','\)\)"),
        ("x.bin", r"must end in one of \.npz, \.npy, \.safetensors$"),
    ],
)
def test_other_kinds_of_files_are_refused_with_the_way_out(name, way, tmp_path):
    (tmp_path / name).write_text("1,2\n")
    with pytest.raises(ValueError, match=way):
        read_arrays(tmp_path / name)


def test_one_array_is_read_without_the_others(npz, tmp_path):
    path = npz(a=IMAGES, b=LABELS)
    assert set(read_arrays(path, only="b")) == {"b"}
    assert set(read_arrays(path, only="c")) == {"a", "b"}
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "x.safetensors")
    assert set(read_arrays(tmp_path / "x.safetensors", only="b")) == {"b"}


def test_an_array_in_native_order_is_mapped_and_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    assert isinstance(read_arrays(tmp_path / "x.npy")[""], np.memmap)

import numpy as np
import pytest
import torch

from vlcal.types import ClassSet, Predictions


def unit(generator, rows, columns=8):
    return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator), dim=-1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def features(generator):
    return {
        "image_features": unit(generator, 30),
        "text_features": unit(generator, 5),
        "logit_scale": 20.0,
        "labels": torch.randint(5, (30,), generator=generator),
    }


def test_prompts_fill_underscores_and_keep_braces():
    classes = ClassSet(("water_lily", "a{}b"), "a photo of a {}.")
    assert classes.prompts() == ["a photo of a water lily.", "a photo of a a{}b."]
    assert classes.subset([1]).names == ("a{}b",)


@pytest.mark.parametrize(
    ("names", "template", "match"),
    [
        ("cat", "{}", "got one string"),
        (("cat", " "), "{}", "non-empty string, got ' ' for label 1"),
        (("cat",), "a photo", "exactly one {}"),
    ],
)
def test_class_set_refuses(names, template, match):
    with pytest.raises(ValueError, match=match):
        ClassSet(names, template)


def test_stored_and_blocked_logits_agree(features):
    fused = Predictions(**features)
    stored = fused.with_logits(torch.cat([block for _, block in fused.blocks()]))
    row, predicted = torch.linspace(0.5, 2, 30), torch.linspace(0.8, 1.2, 5)
    again = fused.scaled(row=row).scaled(predicted=predicted)
    small = torch.cat([block for _, block in again.blocks(max_bytes=100)])
    expected = stored.scaled(predicted=predicted, row=row).logits
    torch.testing.assert_close(small, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scaling_moves_no_predicted_class(generator, dtype):
    # neighbors one rounding step apart, the larger one last: products may round to the same number
    low = (1 + torch.rand(20_000, generator=generator)).to(dtype)
    logits = torch.stack([low, torch.nextafter(low.cpu(), torch.full_like(low, 9))], dim=-1)
    scaled = Predictions(logits=logits).scaled(row=1.5).logits
    assert (scaled.argmax(-1) == logits.argmax(-1)).all()


def test_ties_resolve_to_the_first_class_after_scaling():
    scaled = Predictions(logits=torch.tensor([[1.0, 3.0, 3.0]])).scaled(row=0.3)
    assert scaled.logits.argmax(-1).item() == 1


@pytest.mark.parametrize(
    ("factors", "match"),
    [
        ({"row": 0.0}, "row factors must be positive"),
        ({"row": float("nan")}, "positive and finite"),
        ({"row": torch.ones(3)}, r"one number or \[30\], got shape \(3,\)"),
        ({"predicted": torch.ones(30)}, r"one number or \[5\]"),
    ],
)
def test_scaled_refuses(features, factors, match):
    with pytest.raises(ValueError, match=match):
        Predictions(**features).scaled(**factors)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"logit_scale": None}, "give logits, or image_features"),
        ({"labels": torch.full((30,), 5)}, r"0\.\.4, got 5 in row 0 \(30 in all\)"),
        ({"labels": torch.zeros(30)}, "must be integers"),
        ({"labels": torch.zeros(30, 5).long()}, "class indices"),
        ({"class_names": ("a",)}, "5 names, got 1"),
        ({"logits": torch.zeros(30, 5).long()}, "floating point"),
        ({"logits": torch.zeros(30)}, r"\[N, C\]"),
        ({"row_scale": torch.ones(4)}, "row_scale must have 30 rows"),
        ({"zero_shot": Predictions(logits=torch.zeros(30, 4))}, "same 30 images and 5 classes"),
    ],
)
def test_predictions_refuse(features, change, match):
    with pytest.raises(ValueError, match=match):
        Predictions(**{**features, **change})


def test_names_the_first_row_that_is_not_finite():
    logits = torch.zeros(6, 3, dtype=torch.float16)
    logits[4, 1] = torch.inf
    logits[5] = torch.nan
    with pytest.raises(ValueError, match="4 NaN or infinite values in 2 rows, the first in row 4"):
        Predictions(logits=logits)


def test_select_takes_the_zero_shot_rows_too(features):
    predictions = Predictions(**features, zero_shot=Predictions(**features))
    chosen = predictions.select(torch.tensor([3, 1]))
    assert torch.equal(chosen.labels, features["labels"][[3, 1]])
    assert torch.equal(chosen.zero_shot.image_features, features["image_features"][[3, 1]])


def test_saved_predictions_come_back(features, tmp_path):
    names = tuple("abcde")
    before = Predictions(**features, class_names=names, zero_shot=Predictions(**features))
    before = before.scaled(row=2.0)
    before.save(tmp_path / "p.safetensors")
    after = Predictions.load(tmp_path / "p.safetensors")
    assert after.class_names == names
    assert after.logit_scale == 20.0
    assert torch.equal(after.row_scale, before.row_scale)
    assert torch.equal(after.zero_shot.text_features, before.zero_shot.text_features)
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_foreign_and_truncated_files_are_refused(features, tmp_path):
    path = tmp_path / "p.safetensors"
    Predictions(**features).save(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        Predictions.load(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Predictions.load(tmp_path / "other")


def test_numpy_arrays_become_tensors_of_the_same_numbers():
    logits = np.arange(6, dtype=">f4").reshape(3, 2)[:, ::-1]
    made = Predictions(logits=logits, labels=np.array([0, 1, 1], dtype=np.uint8))
    assert torch.equal(made.logits, torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 4.0]]))
    assert made.labels.dtype == torch.int64
    with pytest.raises(ValueError, match="Predictions: logits: must be an array of numbers"):
        Predictions(logits=[["a", "b"]])


def test_predictions_are_shown_by_what_they_hold():
    twin = Predictions(logits=torch.zeros(2000, 3))
    made = Predictions(logits=torch.zeros(2000, 3), labels=torch.zeros(2000).long(), zero_shot=twin)
    assert repr(made) == "Predictions(2,000 x 3: logits, labels, zero_shot)"

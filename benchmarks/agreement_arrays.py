"""Data on which other libraries' numbers are compared with ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from vlcal.clip import load
from vlcal.data import loader
from vlcal.data.features import read_arrays
from vlcal.data.icons import icons
from vlcal.data.transforms import evaluation

Array = np.ndarray


@dataclass(frozen=True)
class Half:
    """Probabilities [N, C] and labels [N], logits and image features where there are any."""

    probs: Array
    labels: Array
    logits: Array
    images: Array | None = None


@dataclass(frozen=True)
class Data:
    """What calibrators are fitted on, what they are applied to, and texts for DAC.

    `texts` are the base and current class features, zero-shot and tuned, as the published code
    orders them.
    """

    name: str
    about: str
    val: Half
    test: Half
    texts: tuple[Array, Array, Array, Array] | None = None


def seeded(n: int = 4000, n_classes: int = 20) -> Data:
    """Over-confident predictions of random Gaussian features, one tenth at exactly 0 and 1."""
    rng = np.random.default_rng(0)
    text = _unit(rng.normal(size=(n_classes, 64)) + 2)
    tuned = _unit(text + 0.05 * rng.normal(size=text.shape))
    labels = rng.integers(n_classes, size=2 * n)
    images = _unit(text[labels] + 0.12 * rng.normal(size=(2 * n, 64)))
    logits = 100 * images @ tuned.T
    probs = _softmax(logits)
    sure = np.arange(2 * n) % 10 == 0
    probs[sure] = np.eye(n_classes)[probs[sure].argmax(1)]
    halves = [
        Half(probs[part], labels[part], logits[part], images[part].astype(np.float16))
        for part in (slice(n), slice(n, None))
    ]
    half = n_classes // 2
    texts = tuple(
        each.astype(np.float16) for each in (text[:half], text[half:], tuned[:half], tuned[half:])
    )
    about = f"{n:,} + {n:,} rows, {n_classes} classes, float64, every tenth confidence exactly 1"
    return Data("seeded arrays", about, *halves, texts)  # type: ignore[arg-type]


def bundled_icons() -> Data:
    """Zero-shot predictions of the bundled CLIP on the bundled icons; another phrase is "tuned"."""
    clip, dataset = load(), icons()

    def half(items: list) -> tuple[torch.Tensor, Array]:
        batches = loader(items, dataset, evaluation(clip.preprocess), batch_size=256)
        rows = [(clip.encode_image(batch.images), batch.labels) for batch in batches]
        features, labels = (torch.cat(each) for each in zip(*rows, strict=True))
        return features, labels.numpy()

    with torch.no_grad():
        plain, phrase = (
            clip.encode_text([template.format(name) for name in dataset.classes.names])
            for template in ("a {}.", clip.template)
        )
        made = [half(items) for items in (dataset.val, dataset.test)]
    halves = [
        Half(_softmax(logits), labels, logits, images.numpy().astype(np.float16))
        for images, labels in made
        for logits in [(clip.logit_scale * images @ phrase.T).double().numpy()]
    ]
    m = (len(plain) + 1) // 2
    texts = tuple(
        each.numpy().astype(np.float16) for each in (plain[:m], plain[m:], phrase[:m], phrase[m:])
    )
    about = (
        f"{len(halves[0].labels):,} + {len(halves[1].labels):,} rows, {len(plain)} classes, float64"
    )
    return Data("bundled icons", about, *halves, texts)  # type: ignore[arg-type]


def from_file(path: Path) -> Data:
    """Features with texts (val_x, test_x, text_x, train_x), or predictions with ground_truth."""
    arrays = read_arrays(path)
    if "predictions" in arrays:
        return _from_predictions(path.stem, arrays)
    text = _float(arrays["text_x"])
    train, labels = _float(arrays["train_x"]), torch.from_numpy(arrays["train_y"]).long()
    means = torch.stack([train[labels == c].mean(0) for c in range(len(text))])
    tuned = normalize(text + 0.5 * normalize(means, dim=-1), dim=-1)
    halves = []
    for part in ("val", "test"):
        images = arrays[f"{part}_x"]
        logits = (100 * _float(images) @ tuned.T).double().numpy()
        halves.append(Half(_softmax(logits), arrays[f"{part}_y"].astype(np.int64), logits, images))
    m = (len(text) + 1) // 2
    texts = tuple(
        each.numpy().astype(np.float16) for each in (text[:m], text[m:], tuned[:m], tuned[m:])
    )
    sizes = " + ".join(f"{len(half.labels):,}" for half in halves)
    about = f"{sizes} rows, {len(text)} classes, float64; text features moved towards train images"
    return Data(path.stem, about, *halves, texts)  # type: ignore[arg-type]


def _from_predictions(name: str, arrays: dict[str, Array]) -> Data:
    probs, labels = arrays["predictions"], arrays["ground_truth"].ravel().astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    halves = [
        Half(probs[rows], labels[rows], np.log(np.maximum(probs[rows], 1e-30)))
        for rows in np.split(order, [len(order) // 2])
    ]
    sizes = " + ".join(f"{len(half.labels):,}" for half in halves)
    return Data(name, f"{sizes} rows, {probs.shape[1]} classes, {probs.dtype}", *halves)


def _float(features: Array) -> torch.Tensor:
    return normalize(torch.from_numpy(features).float(), dim=-1)


def _unit(values: Array) -> Array:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)

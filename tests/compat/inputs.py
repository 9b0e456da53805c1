"""Inputs made by integer arithmetic: the same bits everywhere, so that golden values hold."""

import json
from pathlib import Path

import numpy as np

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


def golden(section, name):
    """What the original gave: numbers, NaN where it gave NaN or an error."""
    return np.array(GOLDEN[section][name], dtype=float)


def fractions(n, step, modulus=10007):
    """n < 5,000 different numbers in (0, 1) without a pattern: squares modulo a prime, over it."""
    i = np.arange(1, n + 1)
    return i * (i + 3) % modulus * step % modulus / modulus


def samples(case, n=200):
    """Confidence, proximity, predicted and true classes."""
    a, b, c = (fractions(n, step) for step in (7919, 3571, 5039))
    conf, near = 1 - a * a * a, 0.3 + 0.7 * b
    pred = np.arange(n) * 5 % 7
    if case == "ties":
        conf, near = np.floor(conf * 10) / 10, np.floor(near * 10) / 10
    elif case == "ones":
        conf[: n // 3] = 1.0
    elif case == "above":  # as multi-isotonic regression makes them
        conf[: n // 3] = 1 + 1e-9 * conf[: n // 3]
    elif case == "float32":
        conf, near = conf.astype(np.float32), near.astype(np.float32)
    elif case == "constant":
        conf, near = np.full(n, 0.25), np.full(n, 0.5)
    elif case == "edges":
        conf = np.arange(n) % 11 / 10
    return conf, near, pred, np.where(c < conf, pred, (pred + 1) % 7)


CASES = ("spread", "ties", "ones", "above", "float32", "constant", "edges")


def logits(n, n_classes, scale=6.0, step=7919):
    """[n, C] logits and labels: their softmax is too sure below some confidence, not enough above.

    Gaps of both signs, so that merging bins shows in every metric.
    """
    z = (fractions(n * n_classes, step).reshape(n, n_classes) - 0.5) * scale
    top = np.sort(z, axis=1)
    sharpness = np.where(top[:, -1] - top[:, -2] > scale / 6, 3.0, 0.25)[:, None]
    weight = np.exp(z * sharpness)
    edges = np.cumsum(weight, axis=1) / weight.sum(1, keepdims=True)
    labels = (edges < fractions(n, 5039)[:, None]).sum(1).clip(max=n_classes - 1)
    return z, labels


def features(n, width, step, near=None, dtype=np.float64):
    """[n, D] features around a common direction; the first rows equal `near` if given."""
    values = (fractions(n * width, step).reshape(n, width) - 0.25) / 4
    if near is not None:
        values[: len(near)] = near
    return values.astype(dtype)

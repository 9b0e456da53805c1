"""Isotonic regression, binning and densities written from their definitions, one loop each."""

import numpy as np


def isotonic(x, y, ties=0.0):
    """Knots of the non-decreasing least-squares fit: the max-min formula over means of intervals.

    Values closer than `ties` to the lowest of a run are one point.
    """
    order = np.argsort(x, kind="stable")
    x, y = x[order].astype(np.float64), y[order].astype(np.float64)
    starts = [0]
    for i in range(1, len(x)):
        if x[i] != x[starts[-1]] and x[i] - x[starts[-1]] >= ties:
            starts.append(i)
    total = np.append(np.add.reduceat(y, starts).cumsum(), 0)  # the last is read by index -1
    count = np.append(np.diff([*starts, len(x)]).cumsum(), 0)
    n = len(starts)
    fit = [
        max(
            min((total[b] - total[a - 1]) / (count[b] - count[a - 1]) for b in range(i, n))
            for a in range(i + 1)
        )
        for i in range(n)
    ]
    return x[starts], np.array(fit)


def isotonic_map(x, y, at, ties=0.0):
    return np.interp(at, *isotonic(x, y, ties))


def histogram_map(x, y, at, n_bins):
    """Fit on [lo, hi), look up in (lo, hi], empty bins give their middle."""
    edges = np.linspace(0, 1, n_bins + 1)
    values = []
    for b in range(n_bins):
        inside = (edges[b] <= x) & ((x < edges[b + 1]) | (b == n_bins - 1))
        values.append(y[inside].mean() if inside.any() else (edges[b] + edges[b + 1]) / 2)
    found = np.empty(len(at))
    for i, value in enumerate(at):
        found[i] = values[next(b for b in range(n_bins) if value <= edges[b + 1])]
    return found


def one_versus_rest(fit, probs, labels, at):
    """A map per class that has labels, 0 for the others, rows divided by their sum."""
    made = np.zeros(at.shape)
    for c in np.unique(labels):
        made[:, c] = fit(probs[:, c], (labels == c).astype(float), at[:, c])
    with np.errstate(invalid="ignore"):
        return made / made.sum(1, keepdims=True)


def density(points, at):
    """Product Gaussian kernels with the bandwidth 1.06 std n^(-1/6)."""
    h = 1.06 * points.std(0) * len(points) ** (-1 / 6)
    found = np.empty(len(at))
    for i, x in enumerate(at):
        z = (points - x) / h
        found[i] = np.mean(np.exp(-0.5 * (z * z).sum(1))) / (2 * np.pi * h.prod())
    return found


def softmax(logits):
    e = np.exp(logits)
    return e / e.sum(1, keepdims=True)

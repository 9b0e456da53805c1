"""The published code's distances and DAC: recorded values, literal loops, float16 bit by bit."""

import numpy as np
import pytest

from tests.compat.inputs import features, logits
from vlcal.calibrators import NotFitted
from vlcal.compat import clip_calibration as compat
from vlcal.compat.clip_calibration import distances

DTYPES = (np.float16, np.float32, np.float64)


def model(dtype, base=40, current=30, width=24):
    """Base and current text features, zero-shot and tuned; a third of the classes are base ones."""
    args = {"width": width, "dtype": dtype}
    base_zs, base_tuned = features(base, step=7919, **args), features(base, step=3571, **args)
    third = current // 3
    return (
        base_zs,
        features(current, step=5039, near=base_zs[:third], **args),
        base_tuned,
        features(current, step=6007, near=base_tuned[:third], **args),
    )


def factors_by_loop(base_zs, current_zs, base_tuned, current_tuned, k):
    """The definition, one class and one model at a time."""
    factors = []
    for c in range(len(current_zs)):
        score = {}
        for name, base, row in (
            ("zero-shot", base_zs, current_zs[c]),
            ("tuned", base_tuned, current_tuned[c]),
        ):
            near = np.sort(np.linalg.norm(base - row, axis=1))[:k]
            score[name] = np.exp(-np.sum(near) / k)
        factors.append(1.0 if near[0] < 0.05 else score["tuned"] / score["zero-shot"])
    return np.array(factors)


GOLDEN_FACTORS = {
    "float16": [1.0, 1.0, 0.93310546875, 0.953125, 0.96630859375, 1.01953125],
    "float32": [
        1.0,
        1.0,
        0.9329653978347778,
        0.9531087279319763,
        0.9661386609077454,
        1.0194612741470337,
    ],
    "float64": [
        1.0,
        1.0,
        0.9329653724875144,
        0.9531086593005398,
        0.9661386483063062,
        1.019461362169565,
    ],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_factors_are_the_recorded_ones(dtype):
    dac = compat.DistanseAwareCalibration()
    assert dac.fit(*model(dtype, base=6, current=6), 3) is None
    expected = np.array(GOLDEN_FACTORS[dtype.__name__])
    rounding = {"rtol": 0 if dtype == np.float16 else 4 * np.finfo(dtype).eps, "atol": 0}
    np.testing.assert_allclose(dac.class_confidence, expected, **rounding)


@pytest.mark.parametrize("k", [1, 5, 45])  # with 45 of 40 the sum is still divided by 45
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_factors_equal_the_loop_bit_by_bit(dtype, k):
    given = model(dtype)
    dac = compat.DistanseAwareCalibration()
    dac.fit(*given, k)
    expected = factors_by_loop(*given, k)
    assert dac.class_confidence.dtype == expected.dtype
    np.testing.assert_array_equal(dac.class_confidence, expected)


@pytest.mark.parametrize("length", [1, 0.9998])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_rows_whose_shortlist_is_not_certain_are_compared_with_all(dtype, length, monkeypatch):
    # a crowd at nearly one distance: rounding decides who is near
    base = np.random.default_rng(0).normal(size=(300, 32))
    base = (length * base / np.linalg.norm(base, axis=1, keepdims=True)).astype(dtype)
    current = np.zeros((9, 32), dtype)
    expected = [np.sort(np.linalg.norm(base - row, axis=1))[:5] for row in current]
    monkeypatch.setattr(distances, "SPARE", 1)
    monkeypatch.setattr(distances, "BLOCK", 4)
    np.testing.assert_array_equal(distances.nearest(current, base, 5), expected)


def test_squares_that_float16_loses_are_near():
    # 64 components of 2^-13: NumPy finds distance 0, though thirty others are nearer
    lost, kept = np.full((5, 64), 2.0**-13), np.eye(30, 64) * 2.0**-11
    base = np.vstack([kept, lost]).astype(np.float16)
    seen = distances.nearest(np.zeros((1, 64), np.float16), base, 5)
    np.testing.assert_array_equal(seen, np.zeros((1, 5)))


def test_squares_that_float16_rounds_down_are_near():
    # the exact distance of the first kind is smaller, NumPy's is larger
    a, b = 0.2666015625, 0.255126953125
    base = np.zeros((35, 64), np.float16)
    base[:30, :54], base[30:, :59] = a, b
    assert 54 * a * a < 59 * b * b
    current = np.zeros((1, 64), np.float16)
    expected = np.sort(np.linalg.norm(base, axis=1))[None, :5]
    np.testing.assert_array_equal(distances.nearest(current, base, 5), expected)
    assert expected[0, 0] < np.linalg.norm(base[:1], axis=1)


def test_the_tuned_distance_alone_makes_a_base_class():
    base = np.eye(8, dtype=np.float32)
    near, far = base[:2] + np.float32(0.01), base[:2] + np.float32(0.1)
    dac = compat.DistanseAwareCalibration()
    dac.fit(base, far, base, near, 3)
    assert (dac.class_confidence == 1).all()
    dac.fit(base, near, base, far, 3)
    assert (dac.class_confidence < 0.95).all()


def test_without_a_base_class_factors_keep_the_precision_of_the_features():
    base_zs, current_zs, base_tuned, current_tuned = model(np.float16)
    dac = compat.DistanseAwareCalibration()
    dac.fit(base_zs, current_zs[10:], base_tuned, current_tuned[10:], 5)
    assert dac.class_confidence.dtype == np.float16


def test_predict_scales_rows_in_float32_and_keeps_its_input():
    dac = compat.DistanseAwareCalibration()
    dac.class_confidence = np.array([1.0, 0.5, 2.0])
    given = np.array([[1.0, 3.0, 2.0], [4.0, 4.0, 1.0], [0.0, 1.0, 7.0]])
    before = given.copy()
    seen = dac.predict(given)
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen, [[0.5, 1.5, 1.0], [4.0, 4.0, 1.0], [0.0, 2.0, 14.0]])
    np.testing.assert_array_equal(given, before)


def test_dac_refuses_what_it_cannot_use():
    dac = compat.DistanseAwareCalibration()
    z, _ = logits(4, 3)
    with pytest.raises(NotFitted, match="fit comes before predict"):
        dac.predict(z)
    with pytest.raises(ValueError, match="k must be an integer >= 1, got 0"):
        dac.fit(*model(np.float32), 0)
    zs, current_zs, tuned, current = model(np.float32)
    with pytest.raises(ValueError, match="must have the same classes, got 30 and 29"):
        dac.fit(zs, current_zs, tuned, current[1:], 5)
    with pytest.raises(ValueError, match="finite"):
        dac.fit(zs * np.nan, current_zs, tuned, current, 5)
    dac.fit(zs, current_zs, tuned, current, 5)
    with pytest.raises(ValueError, match=r"the 30 classes of fit, got \(4, 3\)"):
        dac.predict(z)


GOLDEN_DISTANCES = [
    [0.0, 0.2158695, 0.22073732],
    [0.19255085, 0.2197336, 0.22701174],
    [0.16758092, 0.19167264, 0.22589836],
]
GOLDEN_OTHERS = [
    [0.0, 0.16758092],
    [0.27086416, 0.27086416],
    [0.16758092, 0.16758092],
    [0.0, 0.16758092],
]


def test_distances_are_the_recorded_ones():
    keys, queries = features(9, 8, 7919), features(3, 8, 3571, near=features(1, 8, 7919))
    seen = compat.get_knn_dists(keys, queries, 3)
    assert (seen.dtype, seen.shape) == (np.float32, (3, 3))
    np.testing.assert_allclose(seen, GOLDEN_DISTANCES, rtol=2e-6, atol=1e-7)
    others = compat.get_val_image_knn_dists(np.vstack([queries, queries[:1]]), 2)
    np.testing.assert_allclose(others, GOLDEN_OTHERS, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_distances_equal_the_definition(dtype):
    keys, queries = features(50, 16, 7919, dtype=dtype), features(20, 16, 3571, dtype=dtype)
    keys[7] = keys[8]  # duplicates are neighbors of each other
    every = np.linalg.norm(queries.astype(np.float32)[:, None] - keys.astype(np.float32), axis=-1)
    np.testing.assert_allclose(
        compat.get_knn_dists(keys, queries, 5), np.sort(every, axis=1)[:, :5], rtol=1e-6
    )
    every = np.linalg.norm(keys.astype(np.float32)[:, None] - keys.astype(np.float32), axis=-1)
    np.testing.assert_allclose(
        compat.get_val_image_knn_dists(keys, 5), np.sort(every, axis=1)[:, 1:6], rtol=1e-6
    )


def test_distances_refuse_more_neighbors_than_there_are():
    keys = features(4, 8, 7919)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.4"):
        compat.get_knn_dists(keys, keys, 5)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.3"):
        compat.get_val_image_knn_dists(keys, 4)

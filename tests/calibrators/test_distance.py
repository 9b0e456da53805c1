"""DAC against the literal loop of the paper, and each of its options."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from vlcal.calibrators import DistanceAware
from vlcal.types import Predictions


def predictions(tuned, zero_shot, names):
    twin = Predictions(logits=torch.zeros(1, len(tuned)), text_features=zero_shot)
    logits = torch.eye(len(tuned)) * 10
    twin = Predictions(logits=logits, text_features=zero_shot)
    return Predictions(logits=logits, text_features=tuned, class_names=names, zero_shot=twin)


def features(n, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(1, 24, generator=generator)
    zero_shot = normalize(center + torch.randn(n, 24, generator=generator), dim=-1)
    shift = torch.randn(n, 24, generator=generator)
    return normalize(zero_shot + spread * 0.15 * shift, dim=-1), zero_shot


@pytest.fixture
def base():
    return predictions(*features(11, 0), tuple(f"base {i}" for i in range(11)))


@pytest.fixture
def new():
    tuned, zero_shot = features(6, 1)
    return predictions(tuned, zero_shot, tuple(f"new {i}" for i in range(6)))


def paper_loop(base, test, k=5, dtype=np.float32, same_class=0.05):
    """One class after the other, as published: proximities, their ratio, the rule of 0.05."""
    pairs = [(base.text_features, test.text_features)]
    pairs.append((base.zero_shot.text_features, test.zero_shot.text_features))
    proximity, nearest = [], []
    for base_features, features in pairs:
        base_features, features = (x.numpy().astype(dtype) for x in (base_features, features))
        column = []
        for one in features:
            distance = np.sort(np.linalg.norm(base_features - one, axis=1))[:k]
            nearest.append(distance[0])
            column.append(np.exp(-(distance.sum() / dtype(k))))
        proximity.append(np.array(column, dtype))
    factor = proximity[0] / proximity[1]
    factor[np.array(nearest[: len(factor)]) < same_class] = 1
    return torch.from_numpy(factor.astype(np.float32))


def factors(base, test, **options):
    return DistanceAware(**options).fit(base).scale(test)[1]


@pytest.mark.parametrize("k", [1, 5, 11])
def test_equals_the_loop_of_the_paper(base, new, k):
    ours = factors(base, new, k=k, exempt="distance")
    torch.testing.assert_close(ours, paper_loop(base, new, k), rtol=2e-6, atol=0)
    assert (ours < 1).any()


def test_float16_equals_the_float16_loop_to_its_steps(base, new):
    ours = factors(base, new, exempt="distance", dtype="float16")
    torch.testing.assert_close(ours, paper_loop(base, new, dtype=np.float16), rtol=2e-3, atol=0)
    assert torch.equal(ours, ours.half().float())
    assert not torch.equal(ours, factors(base, new, exempt="distance"))


def test_fewer_classes_than_k_divided_by_k_as_published(base, new):
    few = predictions(base.text_features[:3], base.zero_shot.text_features[:3], ("a", "b", "c"))
    ours = factors(few, new, exempt="distance", few_classes="divide by k")
    torch.testing.assert_close(ours, paper_loop(few, new), rtol=2e-6, atol=0)
    average = factors(few, new, exempt="distance", few_classes="all")
    torch.testing.assert_close(average, paper_loop(few, new, k=3), rtol=2e-6, atol=0)


@pytest.mark.parametrize("n_base", [3, 11])
def test_options_of_the_published_code_equal_its_float16_loop(base, new, n_base):
    few = predictions(
        base.text_features[:n_base],
        base.zero_shot.text_features[:n_base],
        base.class_names[:n_base],
    )
    # shorter than 1, as a tuner reports that averages prompts; and a base class
    tuned = torch.cat([0.9 * new.text_features, few.text_features[:1]])
    zero_shot = torch.cat([new.zero_shot.text_features, few.zero_shot.text_features[:1]])
    test = predictions(tuned, zero_shot, (*new.class_names, few.class_names[0]))
    ours = DistanceAware.dac2024().fit(few).scale(test)[1]
    torch.testing.assert_close(ours, paper_loop(few, test, dtype=np.float16), rtol=2e-3, atol=0)


def test_two_dimensions_by_hand():
    # the only base class is at distance sqrt(2) before tuning and 2 after it
    base = predictions(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), ("cat",))
    test = predictions(torch.tensor([[-1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), ("dog",))
    expected = np.exp(np.sqrt(2) - 2)
    assert factors(base, test, k=1).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("exempt", ["membership", "distance", "none"])
def test_untuned_features_give_factor_one(base, new, exempt, dtype):
    same = predictions(base.text_features, base.text_features, base.class_names)
    test = predictions(new.text_features, new.text_features, new.class_names)
    assert factors(same, test, exempt=exempt, dtype=dtype).tolist() == [1] * 6


@pytest.mark.parametrize("exempt", ["membership", "distance"])
def test_identity_on_the_base_classes(base, exempt):
    fitted = DistanceAware(exempt=exempt).fit(base)
    assert torch.equal(fitted.transform(base).logits, base.logits)


def test_membership_goes_by_name_and_distance_by_feature(base):
    # a base class under another name, and a new class that took the name of a base class
    tuned, zero_shot = features(2, 7)
    tuned[0], zero_shot[0] = base.text_features[3], base.zero_shot.text_features[2]
    test = predictions(tuned, zero_shot, ("other", "base 5"))
    by_name, by_feature = (factors(base, test, exempt=e) for e in ("membership", "distance"))
    assert by_name[0] != 1 and by_name[1] == 1
    assert by_feature[0] == 1 and by_feature[1] != 1


def test_excluding_self_leaves_the_own_base_class_out(base):
    one, rest = torch.tensor([4]), torch.arange(11) != 4
    names = np.array(base.class_names)
    test = predictions(base.text_features[one], base.zero_shot.text_features[one], ("base 4",))
    others = predictions(
        base.text_features[rest], base.zero_shot.text_features[rest], tuple(names[rest.numpy()])
    )
    left_out = factors(base, test, exempt="none", exclude_self=True)
    torch.testing.assert_close(left_out, factors(others, test, exempt="none"))
    assert not torch.equal(left_out, factors(base, test, exempt="none"))


def test_clamp_only_lowers_confidence(base, new):
    closer = predictions(new.zero_shot.text_features, new.text_features, new.class_names)
    free = factors(base, closer)
    assert (free > 1).any()
    assert torch.equal(factors(base, closer, clamp=True), free.clamp(max=1))


def test_renormalizing_undoes_the_norm_of_the_tuned_side(base, new):
    short = predictions(0.7 * new.text_features, new.zero_shot.text_features, new.class_names)
    torch.testing.assert_close(factors(base, short), factors(base, new))
    assert not torch.allclose(factors(base, short, renormalize=False), factors(base, new))


def test_rows_are_scaled_by_their_predicted_class(base, new):
    fitted = DistanceAware().fit(base)
    after = fitted.transform(new).logits
    torch.testing.assert_close(after.diagonal(), 10 * fitted.scale(new)[1])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"k": 12}, r"k must be in 1\.\.11 .*got 12; a smaller k, few_classes='all'"),
        ({"k": 11, "exclude_self": True}, r"k must be in 1\.\.10"),
        ({"k": 0}, "at least 1, got 0"),
        ({"exempt": "names"}, "exempt must be one of membership, distance, none, got 'names'"),
        ({"few_classes": "clip"}, "few_classes must be one of"),
        ({"dtype": "bfloat16"}, "dtype must be one of"),
    ],
)
def test_refuses(base, options, match):
    with pytest.raises(ValueError, match=match):
        DistanceAware(**options).fit(base)


def test_membership_without_names_is_refused_with_the_way_out(base):
    nameless = predictions(base.text_features, base.zero_shot.text_features, None)
    with pytest.raises(ValueError, match=r"needs class_names .*exempt='distance'"):
        DistanceAware().fit(nameless)
    DistanceAware(exempt="distance").fit(nameless)


def test_zero_shot_text_features_are_needed(base):
    bare = Predictions(
        logits=base.logits,
        text_features=base.text_features,
        class_names=base.class_names,
        zero_shot=Predictions(logits=base.logits),
    )
    with pytest.raises(ValueError, match="dac: zero_shot: needs predictions with text_features"):
        DistanceAware().fit(bare)

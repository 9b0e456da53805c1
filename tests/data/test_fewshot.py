"""Draws and halves are those of CoOp, item for item."""

import json
import random
from dataclasses import replace

import pytest
import torch

from vlcal.data import (
    base_new,
    few_shot,
    few_shot_dataset,
    icons,
    load_few_shot,
    save_few_shot,
)


def coop_few_shot(items, shots):
    """CoOp's own loop: the global stream, a tracker in order of first appearance."""
    tracker = {}
    for item in items:
        tracker.setdefault(item.label, []).append(item)
    chosen = []
    for members in tracker.values():
        chosen.extend(random.sample(members, shots) if len(members) >= shots else members)
    return chosen


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 16])
def test_equals_the_reference_loop_on_one_stream(seed, shots):
    data = icons()
    drawn = few_shot_dataset(data, shots, seed)
    random.seed(seed)
    assert drawn.train == coop_few_shot(data.train, shots)
    assert drawn.val == coop_few_shot(data.val, min(shots, 4))
    assert drawn.test == data.test


def test_classes_come_in_order_of_first_appearance(toy):
    drawn = few_shot(toy.train, 2, random.Random(0))
    assert [item.label for item in drawn] == [2, 2, 0, 0, 4, 4, 3, 1, 1]
    assert len(set(drawn)) == len(drawn)


def test_does_not_touch_the_global_streams(toy):
    before = random.getstate(), torch.get_rng_state()
    few_shot_dataset(toy, 2, 1)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_holdout_has_at_most_four_a_class(toy):
    assert len(few_shot_dataset(toy, 16, 1).val) == 4 * 4 + 1


def test_calibrating_on_test_keeps_the_whole_list(toy):
    same = replace(toy, val=list(toy.test))
    drawn = few_shot_dataset(same, 1, 1)
    assert drawn.val == same.test
    base, _ = base_new(drawn)
    assert base.val == base.test


@pytest.mark.parametrize("k", [0, -1])
def test_refuses_less_than_one_shot(toy, k):
    with pytest.raises(ValueError, match=f"few_shot: k must be at least 1, got {k}"):
        few_shot(toy.train, k, random.Random(0))


def test_lists_are_read_back_and_tied_to_their_split(toy, tmp_path):
    path = tmp_path / "shots_2-seed_1.json"
    save_few_shot(path, toy, 2, 1)
    again = load_few_shot(path, toy)
    expected = few_shot_dataset(toy, 2, 1)
    assert (again.train, again.val) == (expected.train, expected.val)
    with pytest.raises(ValueError, match="drawn from another split of 'toy'"):
        load_few_shot(path, replace(toy, train=toy.train[::-1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 1"),
        ({"train": [0, 99]}, r"distinct positions in 0\.\.12"),
        ({"train": [0, 0]}, "distinct positions"),
        ({"val": "all"}, "val must be a list of positions"),
        ({"val": [True]}, "val must be a list of positions"),
    ],
)
def test_refuses_damaged_lists(toy, tmp_path, change, message):
    path = tmp_path / "shots.json"
    save_few_shot(path, toy, 2, 1)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_few_shot(path, toy)


def test_refuses_a_truncated_list(toy, tmp_path):
    path = tmp_path / "shots.json"
    save_few_shot(path, toy, 2, 1)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="is not JSON"):
        load_few_shot(path, toy)


def test_base_is_the_first_half_rounded_up(toy):
    base, new = base_new(toy)
    assert base.classes.names == ("ant", "bee", "cat")
    assert new.classes.names == ("dog", "elk")
    assert {item.label for item in base.train} == {0, 1, 2}
    assert [(item.label, item.class_name) for item in new.test] == [
        (1, "elk"),
        (1, "elk"),
        (0, "dog"),
    ]


def test_halves_share_nothing_and_lose_nothing(toy):
    base, new = base_new(toy)
    for part in ("train", "val", "test"):
        paths = [item.path for half in (base, new) for item in getattr(half, part)]
        assert sorted(paths) == sorted(item.path for item in getattr(toy, part))


def test_every_label_keeps_its_class_name(toy):
    for half in base_new(toy):
        for item in half.train + half.val + half.test:
            assert half.classes.names[item.label] == item.class_name


def test_classes_outside_train_are_dropped(toy):
    base, new = base_new(replace(toy, train=[i for i in toy.train if i.label != 0]))
    assert base.classes.names + new.classes.names == ("bee", "cat", "dog", "elk")


def test_refuses_one_class(toy):
    one = [item for item in toy.train if item.label == 2]
    with pytest.raises(ValueError, match="toy must have two classes, got 1"):
        base_new(replace(toy, train=one))

"""A feature cache is whole or resumable, belongs to one key, and is verified on every read."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from vlcal.data import cache_folder, cached_features, feature_key, file_list_hash, icons
from vlcal.data.cache import _Cache

KEY = feature_key("model", {"size": 32}, prompts=["a cat."])
N, DIM = 23, 5
VALUES = torch.randn(N, DIM, generator=torch.Generator().manual_seed(0))


class Counting:
    """Gives the rows of VALUES and remembers which; raises when it comes to row `stop_at`."""

    def __init__(self, stop_at=N + 1):
        self.stop_at = stop_at
        self.calls = []

    def __call__(self, rows):
        if rows.stop >= self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((rows.start, rows.stop))
        return VALUES[rows]


def cached(folder, compute, key=KEY, **options):
    return cached_features(folder, key, N, DIM, compute, **({"shard_rows": 10} | options))


def only_folder(folder):
    (path,) = folder.iterdir()
    return path


def test_computed_once_and_equal(tmp_path):
    compute = Counting()
    assert torch.equal(cached(tmp_path, compute), VALUES)
    assert torch.equal(cached(tmp_path, compute), VALUES)
    assert compute.calls == [(0, 10), (10, 20), (20, 23)]


def test_the_file_is_plain_safetensors(tmp_path):
    from safetensors.torch import load_file

    cached(tmp_path, Counting())
    stored = load_file(only_folder(tmp_path) / "features.safetensors")
    assert torch.equal(stored["features"], VALUES)


def test_features_are_mapped_and_the_file_is_safe_from_the_caller(tmp_path):
    features = cached(tmp_path, Counting())
    path = str(only_folder(tmp_path) / "features.safetensors")
    if Path("/proc/self/maps").exists():
        assert path in Path("/proc/self/maps").read_text()
    features.zero_()
    assert torch.equal(cached(tmp_path, Counting()), VALUES)


def test_half_precision_results_become_float32(tmp_path):
    features = cached(tmp_path, lambda rows: VALUES[rows].half())
    assert features.dtype == torch.float32
    assert torch.equal(features, VALUES.half().float())


def test_interrupted_work_is_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, Counting(stop_at=21))
    resumed, seen = Counting(), []
    assert torch.equal(cached(tmp_path, resumed, progress=lambda *p: seen.append(p)), VALUES)
    assert resumed.calls == [(20, 23)]
    assert seen == [(10, 23), (20, 23), (23, 23)]


def test_a_kill_before_the_first_shard_leaves_nothing_in_the_way(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, Counting(stop_at=1))
    assert torch.equal(cached(tmp_path, Counting()), VALUES)


@pytest.mark.parametrize(
    "other",
    [
        feature_key("other model", {"size": 32}, prompts=["a cat."]),
        feature_key("model", {"size": 33}, prompts=["a cat."]),
        feature_key("model", {"size": 32}, prompts=["a dog."]),
        feature_key("model", {"size": 32}, prompts=["a cat."], files="x"),
    ],
)
def test_every_part_of_the_key_counts(tmp_path, other):
    cached(tmp_path, Counting())
    compute = Counting()
    cached(tmp_path, compute, key=other)
    assert compute.calls
    assert len(list(tmp_path.iterdir())) == 2


def test_keys_do_not_depend_on_order_or_tuples(tmp_path):
    cached(tmp_path, Counting(), key={"a": 1, "mean": (0.5, 0.5)})
    compute = Counting()
    cached(tmp_path, compute, key={"mean": [0.5, 0.5], "a": 1})
    assert not compute.calls


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def edit_index(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE = {
    "a flipped bit": (
        lambda file, index: flip_byte(file, -1),
        r"rows 20\.\.23 do not have the hash in index\.json",
    ),
    "a truncated file": (
        lambda file, index: os.truncate(file, 300),
        "features.safetensors must have .* bytes",
    ),
    "a missing file": (lambda file, index: file.unlink(), "features.safetensors must have"),
    "another header": (lambda file, index: flip_byte(file, 20), "has another header"),
    "a huge header": (
        lambda file, index: flip_byte(file, 7),
        "has another header",
    ),
    "a truncated index": (lambda file, index: os.truncate(index, 30), r"index\.json is damaged"),
    "an index that is a list": (lambda file, index: index.write_text("[]"), "is damaged"),
    "an index without hashes": (lambda file, index: index.write_text("{}"), "is damaged"),
    "an index of another key": (
        lambda file, index: edit_index(index, key={"model": "x"}),
        r"index\.json describes other features",
    ),
    "an index with unknown shards": (
        lambda file, index: edit_index(index, sha256={"7": "x", "0": "x", "1": "x"}),
        r"index\.json describes other features",
    ),
    "an index of another format": (
        lambda file, index: edit_index(index, format=2),
        r"index\.json describes other features",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_caches_are_refused(tmp_path, damage):
    cached(tmp_path, Counting())
    folder = only_folder(tmp_path)
    change, message = DAMAGE[damage]
    change(folder / "features.safetensors", folder / "index.json")
    with pytest.raises(ValueError, match=f"{message}.*; delete .* to compute it again"):
        cached(tmp_path, Counting())


def test_finished_shards_are_verified_before_work_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, Counting(stop_at=21))
    cache = _Cache(tmp_path, KEY, N, DIM, 10)
    flip_byte(cache.file, cache.offset(slice(3, 4)))
    compute = Counting()
    with pytest.raises(ValueError, match=r"rows 0\.\.10 do not have the hash"):
        cached(tmp_path, compute)
    assert not compute.calls


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda rows: VALUES, r"floating point \(10, 5\) for rows 0\.\.10, got .*\(23, 5\)"),
        (lambda rows: VALUES[rows].int(), "got torch.int32"),
        (lambda rows: VALUES[rows] / 0, r"finite values, got NaN or infinity in rows 0\.\.10"),
    ],
)
def test_refuses_what_is_not_features(tmp_path, compute, message):
    with pytest.raises(ValueError, match=message):
        cached(tmp_path, compute)


@pytest.mark.parametrize("sizes", [(0, 5, 1), (5, 0, 1), (5, 5, 0)])
def test_refuses_empty_sizes(tmp_path, sizes):
    n, dim, shard_rows = sizes
    with pytest.raises(ValueError, match="must be at least 1, got"):
        cached_features(tmp_path, KEY, n, dim, Counting(), shard_rows=shard_rows)


def slow_worker(folder, log):
    def compute(rows):
        time.sleep(0.1)
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {rows.start}\n")
        return VALUES[rows]

    assert torch.equal(cached(folder, compute), VALUES)


def start(folder, log):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=slow_worker, args=(folder, log))
    process.start()
    return process


def test_two_processes_share_the_work_of_one(tmp_path):
    processes = [start(tmp_path / "cache", tmp_path / "log") for _ in range(2)]
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0]
    lines = (tmp_path / "log").read_text().split("\n")[:-1]
    assert sorted(line.split()[1] for line in lines) == ["0", "10", "20"]
    assert len({line.split()[0] for line in lines}) == 1


def test_a_killed_process_frees_the_lock_and_keeps_its_shards(tmp_path):
    process = start(tmp_path / "cache", tmp_path / "log")
    while not list(tmp_path.glob("cache/*/index.json")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    compute = Counting()
    assert torch.equal(cached(tmp_path / "cache", compute), VALUES)
    assert compute.calls and (0, 10) not in compute.calls


def test_location(tmp_path, monkeypatch):
    monkeypatch.setenv("VLCAL_CACHE", str(tmp_path / "given"))
    assert cache_folder() == tmp_path / "given"
    assert cache_folder(tmp_path / "argument") == tmp_path / "argument"
    monkeypatch.delenv("VLCAL_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/vlcal"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/vlcal"


def no_home():
    raise RuntimeError("could not determine home")


def test_no_home_names_the_variable(monkeypatch):
    monkeypatch.delenv("VLCAL_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ValueError, match=r"no home folder .*; set VLCAL_CACHE"):
        cache_folder()


def test_a_file_in_the_way_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        cached(tmp_path / "file", Counting())


def test_file_lists_count_by_name_order_and_size(tmp_path, toy):
    from dataclasses import replace

    data = replace(toy, root=tmp_path)
    items = data.train[:2]
    (tmp_path / "train").mkdir()
    for item in items:
        (tmp_path / item.path).write_bytes(b"123")
    first = file_list_hash(items, data)
    assert file_list_hash(items, data) == first
    assert file_list_hash(items[::-1], data) != first
    (tmp_path / items[0].path).write_bytes(b"1234")
    assert file_list_hash(items, data) != first
    bundled = icons()
    assert file_list_hash(bundled.test, bundled) != file_list_hash(bundled.val, bundled)

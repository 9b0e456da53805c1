"""Feature caches on disk: named by what made them, resumable, mapped, verified on every read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlcal._files import naming, sha256_of, write_atomic
from vlcal.data.items import Dataset, Item

FORMAT = 1
_log = logging.getLogger("vlcal")


def cached_features(
    folder: str | Path | None,
    key: Mapping[str, Any],
    n: int,
    dim: int,
    compute: Callable[[slice], Tensor],
    *,
    shard_rows: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The features [n, dim] that `key` names, read from the cache or computed into it.

    One safetensors file a key, filled in shards of rows, and an index.json with the SHA-256 of
    every finished shard. One file, because only one file can be mapped as one tensor. An
    interrupted computation keeps its finished shards; the next call verifies them and computes the
    others. Of two processes that want the same features one computes and the other waits.

    Args:
        folder: where caches live; by default $VLCAL_CACHE, else the platform's cache folder.
        key: everything the features depend on, as JSON values (`feature_key` makes one).
        n: rows.
        dim: columns.
        compute: `compute(rows)` gives the features of a slice of rows, floating point [rows, dim].
        shard_rows: rows a shard.
        progress: called with (rows done, n) after every shard.

    Returns:
        float32 [n, dim], mapped from the file; writing to it does not change the file.

    Raises:
        ValueError: the files do not hold what the index promises, or `compute` gives another shape
            or values that are not finite.
        OSError: the folder cannot be written.
    """
    if n < 1 or dim < 1 or shard_rows < 1:
        raise ValueError(
            "cached_features: n, dim and shard_rows must be at least 1, "
            f"got {n}, {dim}, {shard_rows}"
        )
    cache = _Cache(cache_folder(folder), dict(key), n, dim, shard_rows)
    if not cache.complete():
        cache.path.mkdir(parents=True, exist_ok=True)
        with _lock(cache.path / "lock"):
            cache.fill(compute, progress)
    return cache.read()


def feature_key(
    model: str, preprocess: Mapping[str, Any], *, prompts: Sequence[str] = (), files: str = ""
) -> dict[str, Any]:
    """The key of features: who made them, from which pixels or prompts.

    Args:
        model: the model's fingerprint.
        preprocess: size, mean, std, interpolation.
        prompts: the encoded texts, for text features.
        files: `file_list_hash` of the encoded images, for image features.
    """
    return {
        "model": model,
        "preprocess": dict(preprocess),
        "prompts": sha256_of(list(prompts)),
        "files": files,
    }


def file_list_hash(items: Sequence[Item], dataset: Dataset) -> str:
    """SHA-256 over name, order and size of the images; a change that keeps the size is not seen."""
    root = dataset.root
    sizes = [] if root is None else [(root / item.path).stat().st_size for item in items]
    return sha256_of(dataset.name, [item.path for item in items], sizes)


def cache_folder(folder: str | Path | None = None) -> Path:
    """`folder`, else $VLCAL_CACHE, else the platform's cache folder for vlcal."""
    if folder is not None:
        return Path(folder)
    if given := os.environ.get("VLCAL_CACHE"):
        return Path(given)
    try:
        home = Path.home()
    except RuntimeError as error:
        raise ValueError(f"cache_folder: no home folder ({error}); set VLCAL_CACHE") from error
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "vlcal"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "vlcal"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "vlcal"


class _Cache:
    """One key's folder: features.safetensors, index.json, lock."""

    def __init__(
        self, folder: Path, key: dict[str, Any], n: int, dim: int, shard_rows: int
    ) -> None:
        # through JSON, so that a tuple in the key equals the list that is read back
        about = {"format": FORMAT, "key": key, "n": n, "dim": dim, "shard_rows": shard_rows}
        self.about = json.loads(json.dumps(about, sort_keys=True))
        self.path = folder / sha256_of(self.about)[:32]
        self.file = self.path / "features.safetensors"
        self.shards = [
            slice(start, min(start + shard_rows, n)) for start in range(0, n, shard_rows)
        ]
        data = n * dim * 4
        entry = {"dtype": "F32", "shape": [n, dim], "data_offsets": [0, data]}
        header = json.dumps({"features": entry}).encode()
        header += b" " * (-len(header) % 8)
        self.header = len(header).to_bytes(8, "little") + header
        self.size = len(self.header) + data

    def complete(self) -> bool:
        return len(self.finished()) == len(self.shards)

    def finished(self) -> dict[str, str]:
        """The SHA-256 of every finished shard, by its number; empty before the first."""
        index = self.path / "index.json"
        if not index.is_file():
            return {}
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
            hashes = content.pop("sha256")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise self.refusal(f"index.json is damaged ({error})") from error
        known = {str(number) for number in range(len(self.shards))}
        if content != self.about or not isinstance(hashes, dict) or not set(hashes) <= known:
            raise self.refusal("index.json describes other features")
        return hashes

    def fill(
        self, compute: Callable[[slice], Tensor], progress: Callable[[int, int], None] | None
    ) -> None:
        """Compute the missing shards; the lock is held."""
        hashes = self.finished()
        if hashes:
            self.verify(hashes)
            _log.info("resuming %s: %d of %d shards", self.path, len(hashes), len(self.shards))
        else:
            self.start()
        for number, rows in enumerate(self.shards):
            if str(number) not in hashes:
                hashes[str(number)] = self.write(rows, self.checked(rows, compute(rows)))
                write_atomic(self.path / "index.json", json.dumps(self.about | {"sha256": hashes}))
            if progress is not None:
                progress(rows.stop, self.about["n"])

    def start(self) -> None:
        """An empty file of the final size: the header of a safetensors file and a hole."""
        with naming(self.file), open(self.file, "wb") as file:
            file.write(self.header)
            file.truncate(self.size)

    def write(self, rows: slice, values: Tensor) -> str:
        content = values.numpy().tobytes()
        with naming(self.file), open(self.file, "r+b") as file:
            file.seek(self.offset(rows))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return hashlib.sha256(content).hexdigest()

    def checked(self, rows: slice, values: Tensor) -> Tensor:
        shape = (rows.stop - rows.start, self.about["dim"])
        if tuple(values.shape) != shape or not values.is_floating_point():
            raise ValueError(
                f"cached_features: compute must give floating point {shape} for rows "
                f"{rows.start}..{rows.stop}, got {values.dtype} {tuple(values.shape)}"
            )
        if not bool(torch.isfinite(values).all()):
            raise ValueError(
                "cached_features: compute must give finite values, "
                f"got NaN or infinity in rows {rows.start}..{rows.stop}"
            )
        return values.detach().float().cpu().contiguous()

    def read(self) -> Tensor:
        self.verify(self.finished())
        return self.mapped()

    def verify(self, hashes: dict[str, str]) -> None:
        values = self.mapped()
        for number, expected in hashes.items():
            rows = self.shards[int(number)]
            if hashlib.sha256(values[rows].numpy().data.cast("B")).hexdigest() != expected:
                raise self.refusal(
                    f"rows {rows.start}..{rows.stop} do not have the hash in index.json"
                )

    def mapped(self) -> Tensor:
        if not self.file.is_file() or self.file.stat().st_size != self.size:
            raise self.refusal(f"features.safetensors must have {self.size} bytes")
        with open(self.file, "rb") as file:
            if file.read(len(self.header)) != self.header:
                raise self.refusal("features.safetensors has another header")
        stored = torch.from_file(str(self.file), shared=False, size=self.size, dtype=torch.uint8)
        return stored[len(self.header) :].view(torch.float32).view(self.about["n"], -1)

    def offset(self, rows: slice) -> int:
        return len(self.header) + rows.start * self.about["dim"] * 4

    def refusal(self, why: str) -> ValueError:
        return ValueError(f"cached_features: {why}; delete {self.path} to compute it again")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, waiting for it; the system releases it when the process dies."""
    try:
        import fcntl
    except ImportError as error:
        raise OSError("cached_features: feature caches need POSIX file locks") from error
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise OSError(f"cached_features: {path} cannot be locked: {error}") from error
        yield

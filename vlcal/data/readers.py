"""Datasets listed in files: CoOp's split JSON and FGVC-Aircraft's text files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlcal.data.images import ImageFiles, check_relative
from vlcal.data.items import Dataset, Item, Split
from vlcal.types import ClassSet

PARTS = ("train", "val", "test")
MAX_BYTES = 512 << 20
DEFAULT_TEMPLATE = "a photo of a {}."


def read_split_json(
    path: str | Path,
    image_root: str | Path,
    *,
    template: str = DEFAULT_TEMPLATE,
    name: str | None = None,
    check_files: bool = True,
    follow_links: bool = False,
) -> Dataset:
    """The dataset of a CoOp split file: train, val, test as lists of [path, label, class name].

    Args:
        path: `split_zhou_*.json`; a byte order mark and Windows line ends are fine.
        image_root: the folder that the paths are relative to.
        template: the dataset's prompt.
        name: how results name the dataset; by default the file's name.
        check_files: look whether every listed image exists.
        follow_links: allow symbolic links that leave `image_root`.

    Raises:
        FileNotFoundError: the file, or an image it lists, is not there.
        ValueError: the file breaks the format; the message names the entry and the rule.
    """
    content = _load_json(Path(path))
    if not isinstance(content, dict) or set(content) != set(PARTS):
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"read_split_json: {path} must have the keys {PARTS}, got {got}")
    parts = [_entries(f"read_split_json: {path}: {part}", content[part]) for part in PARTS]
    classes = _classes(f"read_split_json: {path}", parts, template)
    return _dataset(name or Path(path).stem, classes, parts, image_root, check_files, follow_links)


def read_fgvc(
    folder: str | Path, image_root: str | Path, *, template: str, name: str = "fgvc_aircraft"
) -> Dataset:
    """FGVC-Aircraft: `variants.txt` gives the labels, `images_variant_*.txt` the lists.

    Raises:
        FileNotFoundError: a text file or an image is not there.
        ValueError: a line is not "<image id> <variant>", or names an unknown variant.
    """
    variants = read_lines(Path(folder) / "variants.txt")
    label = {variant: index for index, variant in enumerate(variants)}
    parts = []
    for part in PARTS:
        file = Path(folder) / f"images_variant_{part}.txt"
        items = []
        for number, line in enumerate(read_lines(file), 1):
            image, _, variant = line.partition(" ")
            if variant not in label:
                raise ValueError(
                    f"read_fgvc: {file}:{number} must be '<image id> <variant>' with a variant of "
                    f"variants.txt, got {line!r}"
                )
            items.append(Item(check_relative("read_fgvc", f"{image}.jpg"), label[variant], variant))
        parts.append(items)
    return _dataset(name, ClassSet(tuple(variants), template), parts, image_root, True, False)


def _load_json(path: Path) -> Any:
    who = f"read_split_json: {path}"
    if not path.is_file():
        raise FileNotFoundError(f"read_split_json: no such file: {path}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{who} must be at most {MAX_BYTES} bytes, got {path.stat().st_size}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {key!r} occurs twice")
            found[key] = value
        return found

    def constant(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        text = path.read_bytes().decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{who} is not readable JSON: {error}") from error


def _entries(who: str, entries: Any) -> Split:
    if not isinstance(entries, list):
        raise ValueError(f"{who} must be a list, got {type(entries).__name__}")
    items = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, list) or [type(value) for value in entry] != [str, int, str]:
            raise ValueError(
                f"{who}[{number}] must be [path, integer label, class name], got {entry!r}"
            )
        items.append(Item(check_relative(f"{who}[{number}]", entry[0]), *entry[1:]))
    return items


def _classes(who: str, parts: list[Split], template: str) -> ClassSet:
    names: dict[int, str] = {}
    for part, items in zip(PARTS, parts, strict=True):
        for item in items:
            known = names.setdefault(item.label, item.class_name)
            if known != item.class_name:
                raise ValueError(
                    f"{who}: a label must have one class name, got {known!r} and "
                    f"{item.class_name!r} ({part}) for label {item.label}"
                )
    if sorted(names) != list(range(len(names))) or not names:
        missing = sorted(set(range(max(names, default=0) + 1)) - set(names))[:5]
        raise ValueError(
            f"{who}: labels must be 0..C-1 without gaps, got {len(names)} labels in "
            f"{min(names, default=0)}..{max(names, default=-1)}, missing {missing}"
        )
    return ClassSet(tuple(names[label] for label in range(len(names))), template)


def _dataset(
    name: str,
    classes: ClassSet,
    parts: list[Split],
    image_root: str | Path,
    check_files: bool,
    follow_links: bool,
) -> Dataset:
    root = Path(image_root)
    if check_files:
        listed = [item.path for part in parts for item in part]
        missing = [path for path in listed if not (root / path).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{name}: {len(missing)} of {len(listed)} listed images are not under {root}, "
                f"the first is {missing[0]!r}"
            )
    train, val, test = parts
    return Dataset(name, classes, train, val, test, root, ImageFiles(root, follow_links))


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a UTF-8 text file, stripped; byte order mark and CRLF are fine."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]

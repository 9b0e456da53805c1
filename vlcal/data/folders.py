"""Datasets whose labels are folders: ImageNet, its shifts, and any folder of images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random

from vlcal.data.images import IMAGE_SUFFIXES, ImageFiles
from vlcal.data.items import Dataset, Item, Split
from vlcal.data.readers import DEFAULT_TEMPLATE, PARTS, read_lines
from vlcal.types import ClassSet


def read_imagenet(
    folder: str | Path,
    image_root: str | Path,
    *,
    template: str = DEFAULT_TEMPLATE,
    name: str = "imagenet",
) -> Dataset:
    """ImageNet: `train/<wnid>/*` and `val/<wnid>/*`, class names from `classnames.txt`.

    The official validation set is both `val` and `test`, as in the published protocols: whatever is
    fitted on `val` is then measured on the data it was fitted on.
    """
    root, names = Path(image_root), _class_names(Path(folder))
    wnids = _folders(root / "train")
    classes = _named(names, wnids, template)
    train = _class_items(root, "train/", wnids, classes)
    val = _class_items(root, "val/", wnids, classes)
    return Dataset(name, classes, train, val, list(val), root, ImageFiles(root))


def read_imagenet_shift(
    folder: str | Path, image_root: str | Path, *, template: str = DEFAULT_TEMPLATE, name: str
) -> Dataset:
    """A test-only variant of ImageNet: one folder a class, called by its wnid or its number.

    Numbers (ImageNetV2) are positions in `classnames.txt`; wnids (Sketch, A, R) are numbered in
    sorted order, so that a variant with 200 classes has a ClassSet of 200.
    """
    root, names = Path(image_root), _class_names(Path(folder))
    folders = _folders(root)
    wnids = folders
    if all(entry.isdecimal() for entry in folders):
        folders = sorted(folders, key=int)
        if int(folders[-1]) >= len(names):
            raise ValueError(
                f"read_imagenet_shift: {root} has a folder {folders[-1]}, "
                f"but classnames.txt has {len(names)} lines"
            )
        wnids = [list(names)[int(entry)] for entry in folders]
    classes = _named(names, wnids, template)
    test = _class_items(root, "", folders, classes)
    return Dataset(name, classes, [], [], test, root, ImageFiles(root))


def image_folder(
    root: str | Path, *, template: str = DEFAULT_TEMPLATE, name: str | None = None, seed: int = 0
) -> Dataset:
    """Any folder of images: `root/class/*` or `root/{train,val,test}/class/*`.

    Without train, val and test folders every class is shuffled by `seed` and split 50 / 20 / 30
    with rounding, CoOp's rule. Folder names are the class names, sorted, labels in that order;
    hidden names are skipped.

    Raises:
        FileNotFoundError: `root` has no class folders.
        ValueError: no images at all, or a class that the first of the lists does not have.
    """
    root = Path(root)
    name = name or root.resolve().name
    folders = _folders(root)
    present = [part for part in PARTS if part in folders]
    if len(present) < len(folders):
        classes = ClassSet(tuple(folders), template)
        items = _class_items(root, "", folders, classes)
        parts = _fifty_twenty_thirty(items, Random(seed))
    else:
        classes = ClassSet(tuple(_folders(root / present[0])), template)
        parts = [_part_items(root, part, classes) if part in present else [] for part in PARTS]
    if not any(parts):
        raise ValueError(
            f"image_folder: {root} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    train, val, test = parts
    return Dataset(name, classes, train, val, test, root, ImageFiles(root))


def _class_names(folder: Path) -> dict[str, str]:
    pairs = [line.partition(" ") for line in read_lines(folder / "classnames.txt")]
    return {wnid: name.strip() for wnid, _, name in pairs}


def _named(names: dict[str, str], wnids: list[str], template: str) -> ClassSet:
    unknown = [wnid for wnid in wnids if wnid not in names]
    if unknown:
        raise ValueError(
            f"classnames.txt must name every class folder, {len(unknown)} are missing, "
            f"the first is {unknown[0]!r}"
        )
    return ClassSet(tuple(names[wnid] for wnid in wnids), template)


def _folders(root: Path) -> list[str]:
    found = (
        sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")
        if root.is_dir()
        else []
    )
    if not found:
        raise FileNotFoundError(f"no class folders in {root}")
    return found


def _images(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    names = (entry.name for entry in folder.iterdir() if entry.name[0] != ".")
    return sorted(name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)


def _class_items(root: Path, prefix: str, folders: Iterable[str], classes: ClassSet) -> Split:
    return [
        Item(f"{prefix}{folder}/{image}", label, classes.names[label])
        for label, folder in enumerate(folders)
        for image in _images(root / f"{prefix}{folder}")
    ]


def _part_items(root: Path, part: str, classes: ClassSet) -> Split:
    folders = _folders(root / part)
    unknown = [folder for folder in folders if folder not in classes.names]
    if unknown:
        raise ValueError(
            f"image_folder: {root / part} must have the classes of the first list, "
            f"got {unknown[0]!r}"
        )
    label = {name: index for index, name in enumerate(classes.names)}
    return [
        Item(f"{part}/{folder}/{image}", label[folder], folder)
        for folder in folders
        for image in _images(root / part / folder)
    ]


def _fifty_twenty_thirty(items: Split, rng: Random) -> list[Split]:
    groups: dict[int, Split] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    parts: list[Split] = [[], [], []]
    for group in groups.values():
        rng.shuffle(group)
        first, second = round(0.5 * len(group)), round(0.5 * len(group)) + round(0.2 * len(group))
        for part, chosen in zip(
            parts, (group[:first], group[first:second], group[second:]), strict=True
        ):
            part += chosen
    return parts

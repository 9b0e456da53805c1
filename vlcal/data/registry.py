"""DATASETS: one row a dataset (folder, images, split file, prompts), and how a row is opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vlcal.data.folders import image_folder, read_imagenet, read_imagenet_shift
from vlcal.data.icons import TEMPLATE as ICON_TEMPLATE
from vlcal.data.icons import icons
from vlcal.data.items import Dataset
from vlcal.data.readers import read_fgvc, read_split_json

PHOTO = "a photo of a {}."


@dataclass(frozen=True)
class Row:
    """One dataset: where its files are under the data folder, and its prompts.

    Args:
        name: how results and the command line name it.
        folder: its folder under the data folder.
        images: the image root inside `folder`; "" is the folder itself.
        template: the prompt used everywhere.
        zero_shot_template: the prompt of the zero-shot rows in the papers' tables.
        split: the split file inside `folder`, or the kind of list that takes its place: "fgvc",
            "imagenet", "imagenet-shift", "bundled".
        classes: the number of classes, as published.
    """

    name: str
    folder: str
    images: str
    split: str
    classes: int
    template: str = PHOTO
    zero_shot_template: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "zero_shot_template", self.zero_shot_template or self.template)


DATASETS = (
    Row("icons", "", "", "bundled", 139, ICON_TEMPLATE),
    Row("imagenet", "imagenet", "images", "imagenet", 1000),
    Row("caltech101", "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", 100),
    Row(
        "oxford_pets",
        "oxford_pets",
        "images",
        "split_zhou_OxfordPets.json",
        37,
        "a photo of a {}, a type of pet.",
    ),
    Row("stanford_cars", "stanford_cars", "", "split_zhou_StanfordCars.json", 196),
    Row(
        "oxford_flowers",
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        102,
        "a photo of a {}, a type of flower.",
    ),
    Row(
        "food101",
        "food-101",
        "images",
        "split_zhou_Food101.json",
        101,
        "a photo of {}, a type of food.",
    ),
    Row(
        "fgvc_aircraft",
        "fgvc_aircraft",
        "images",
        "fgvc",
        100,
        "a photo of a {}, a type of aircraft.",
    ),
    Row("sun397", "sun397", "SUN397", "split_zhou_SUN397.json", 397),
    Row(
        "dtd",
        "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        47,
        "a photo of a {}, a type of texture.",
        "{} texture.",
    ),
    Row(
        "eurosat",
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        10,
        "a centered satellite photo of {}.",
    ),
    Row(
        "ucf101",
        "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        101,
        "a photo of a person doing {}.",
    ),
    Row(
        "imagenetv2",
        "imagenetv2",
        "imagenetv2-matched-frequency-format-val",
        "imagenet-shift",
        1000,
    ),
    Row("imagenet_sketch", "imagenet-sketch", "images", "imagenet-shift", 1000),
    Row("imagenet_a", "imagenet-adversarial", "imagenet-a", "imagenet-shift", 200),
    Row("imagenet_r", "imagenet-rendition", "imagenet-r", "imagenet-shift", 200),
)


def row(name: str) -> Row:
    """The row called `name`; a ValueError lists the known ones."""
    known = {row.name: row for row in DATASETS}
    if name not in known:
        raise ValueError(f"dataset: unknown name {name!r}; known: {', '.join(known)}")
    return known[name]


def open_dataset(
    name: str, root: str | Path | None = None, *, template: str | None = None
) -> Dataset:
    """A dataset of the table, any folder of images, or any split file.

    Args:
        name: a name of `DATASETS`; or the path of an image folder (it must contain a slash); or the
            path of a split file in CoOp's form (it must end in .json).
        root: the data folder that holds the datasets' folders; of a split file the folder that its
            paths are relative to, by default the folder it is in. Not needed for the others.
        template: the prompt; by default the published one, and "a photo of a {}." for your own.

    Raises:
        ValueError: unknown name, no `root` where one is needed, or a template without {}.
        FileNotFoundError: a file of the dataset is not there; the message names it.
    """
    found = _open(name, root)
    if template is None:
        return found
    return replace(found, classes=replace(found.classes, template=template))


def is_published(name: str) -> bool:
    """Whether a dataset is in the table, and so has a published prompt."""
    return any(each.name == name for each in DATASETS)


def _open(name: str, root: str | Path | None) -> Dataset:
    if name.endswith(".json"):
        return read_split_json(name, Path(name).parent if root is None else root)
    if "/" in name:
        return image_folder(name)
    if not is_published(name) and Path(name).is_dir():
        raise ValueError(f"dataset: a folder is given with a slash, as in ./{name}, got {name!r}")
    entry = row(name)
    if entry.split == "bundled":
        return icons()
    if root is None:
        raise ValueError(
            f"dataset: {name} needs the data folder that contains {entry.folder!r}; "
            "give it as root (on the command line --root)"
        )
    folder = Path(root) / entry.folder
    images = folder / entry.images
    if entry.split.endswith(".json"):
        split = folder / entry.split
        return read_split_json(split, images, template=entry.template, name=name)
    readers = {
        "fgvc": read_fgvc,
        "imagenet": read_imagenet,
        "imagenet-shift": read_imagenet_shift,
    }
    return readers[entry.split](folder, images, template=entry.template, name=name)

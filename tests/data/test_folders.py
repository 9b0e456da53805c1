"""Folders are labels: ImageNet, its shifts and anybody's images."""

from collections import Counter
from dataclasses import replace

import pytest

from vlcal.data import DATASETS, image_folder, open_dataset
from vlcal.data.registry import row


@pytest.fixture
def imagenet(tmp_path, picture):
    for path in ("train/n02/a.JPEG", "train/n01/b.JPEG", "val/n01/c.JPEG", "val/n02/d.JPEG"):
        picture(path)
    folder = tmp_path / "data/imagenet"
    folder.mkdir(parents=True)
    (tmp_path / "images").rename(folder / "images")
    (folder / "classnames.txt").write_text("n01 tench\nn02 great white shark\nn03 crane\n")
    return tmp_path / "data"


def test_imagenet_calibrates_on_its_test_list(imagenet):
    data = open_dataset("imagenet", imagenet)
    assert data.classes.names == ("tench", "great white shark")
    assert data.train[1] == ("train/n02/a.JPEG", 1, "great white shark")
    assert data.val == data.test and len(data.test) == 2
    assert data.read(data.test[0]).mode == "RGB"


def test_imagenet_needs_a_name_for_every_folder(imagenet):
    (imagenet / "imagenet/classnames.txt").write_text("n01 tench\n")
    with pytest.raises(ValueError, match="1 are missing, the first is 'n02'"):
        open_dataset("imagenet", imagenet)


def test_imagenet_needs_every_validation_folder(imagenet):
    (imagenet / "imagenet/images/val/n02/d.JPEG").unlink()
    (imagenet / "imagenet/images/val/n02").rmdir()
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*val/n02"):
        open_dataset("imagenet", imagenet)


@pytest.mark.parametrize(
    ("name", "folders", "names"),
    [
        ("imagenet_r", ("n03", "n01"), ("tench", "crane")),
        ("imagenetv2", ("2", "0", "10"), ("c0", "c2", "c10")),
    ],
)
def test_shifts_have_only_test_images(tmp_path, picture, name, folders, names):
    entry = row(name)
    base = tmp_path / "images" / entry.folder
    for folder in folders:
        picture(f"{entry.folder}/{entry.images}/{folder}/x.png")
    lines = [f"m{i} c{i}" for i in range(11)]
    if name == "imagenet_r":
        lines = ["n01 tench", "n02 shark", "n03 crane"]
    (base / "classnames.txt").write_text("\n".join(lines))
    data = open_dataset(name, tmp_path / "images")
    assert data.classes.names == names
    assert (len(data.train), len(data.val), len(data.test)) == (0, 0, len(folders))
    assert [item.label for item in data.test] == list(range(len(folders)))


def test_numbered_folders_must_have_a_line(tmp_path, picture):
    entry = row("imagenetv2")
    picture(f"{entry.folder}/{entry.images}/7/x.png")
    (tmp_path / "images" / entry.folder / "classnames.txt").write_text("n01 tench\n")
    with pytest.raises(ValueError, match=r"has a folder 7, but classnames\.txt has 1 lines"):
        open_dataset("imagenetv2", tmp_path / "images")


def test_class_folders_are_split_50_20_30(tmp_path, picture):
    for name in ("dog", "Cat"):
        for i in range(10):
            picture(f"{name}/{i}.png")
    picture(".hidden/x.png")
    (tmp_path / "images/dog/notes.txt").write_text("no image")
    data = image_folder(tmp_path / "images", seed=1)
    assert data.classes.names == ("Cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.test)] == [10, 4, 6]
    assert Counter(item.class_name for item in data.train) == {"Cat": 5, "dog": 5}
    assert len({item.path for item in data.train + data.val + data.test}) == 20
    assert image_folder(tmp_path / "images", seed=1).train == data.train
    assert image_folder(tmp_path / "images", seed=2).train != data.train


def test_given_parts_are_kept(tmp_path, picture):
    for path in ("train/a/1.png", "train/b/1.png", "test/b/2.png"):
        picture(path)
    data = open_dataset(f"{tmp_path}/images")
    assert data.classes.names == ("a", "b")
    assert data.val == [] and data.test == [("test/b/2.png", 1, "b")]


def test_a_class_called_train_is_a_class(tmp_path, picture):
    for path in ("train/1.png", "bus/1.png"):
        picture(path)
    assert image_folder(tmp_path / "images").classes.names == ("bus", "train")


def test_parts_must_agree_in_classes(tmp_path, picture):
    for path in ("train/a/1.png", "test/A/2.png"):
        picture(path)
    with pytest.raises(ValueError, match="must have the classes of the first list, got 'A'"):
        image_folder(tmp_path / "images")


def test_refuses_folders_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="no class folders in"):
        image_folder(tmp_path / "none")
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        image_folder(tmp_path)


def test_only_textures_have_a_second_template():
    differ = [row for row in DATASETS if row.template != row.zero_shot_template]
    assert [(row.name, row.zero_shot_template) for row in differ] == [("dtd", "{} texture.")]


def test_table_has_the_eleven_the_shifts_and_the_icons():
    assert len(DATASETS) == 11 + 4 + 1
    assert len({row.name for row in DATASETS}) == len(DATASETS)
    assert all(row.template.count("{}") == 1 for row in DATASETS)


def test_unknown_names_and_missing_roots():
    with pytest.raises(ValueError, match="unknown name 'cifar'; known: icons, imagenet"):
        open_dataset("cifar", "data")
    with pytest.raises(ValueError, match="eurosat needs the data folder that contains 'eurosat'"):
        open_dataset("eurosat")
    assert open_dataset("icons").name == "icons"


def test_a_folder_without_a_slash_is_told_from_an_unknown_name(tmp_path, picture, monkeypatch):
    picture("a/1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"given with a slash, as in \./images, got 'images'"):
        open_dataset("images")


def test_a_template_replaces_the_one_of_the_dataset():
    given = open_dataset("icons", template="a drawing of a {}.")
    assert given.classes.fill("cat") == "a drawing of a cat."
    assert replace(given, classes=open_dataset("icons").classes) == open_dataset("icons")
    with pytest.raises(ValueError, match=r"template must contain exactly one \{\}"):
        open_dataset("icons", template="a drawing")

"""Split files are read entry by entry; what breaks the format is refused by entry and rule."""

import json

import numpy as np
import pytest

from vlcal.data import open_dataset, read_fgvc, read_split_json
from vlcal.data.readers import PARTS

GOOD = {
    "train": [["b/1.png", 1, "snow_dog"], ["a/1.png", 0, "{cat} %s 🐈"]],
    "val": [["a/2.png", 0, "{cat} %s 🐈"]],
    "test": [["b/ü 3.png", 1, "snow_dog"]],
}


@pytest.fixture
def images(tmp_path, picture):
    for part in PARTS:
        for path, *_ in GOOD[part]:
            picture(path)
    return tmp_path / "images"


def test_toy(split_file, images):
    data = read_split_json(split_file(GOOD), images, template="a {}!", name="toy")
    assert data.classes.names == ("{cat} %s 🐈", "snow_dog")
    assert data.classes.prompts()[1] == "a snow dog!"
    assert [tuple(item) for item in data.train] == [tuple(entry) for entry in GOOD["train"]]
    assert np.asarray(data.read(data.test[0])).shape == (16, 20, 3)


@pytest.mark.parametrize("encode", [lambda s: "\ufeff" + s, lambda s: s.replace("\n", "\r\n")])
def test_byte_order_mark_and_windows_lines_are_fine(split_file, images, encode):
    data = read_split_json(split_file(encode(json.dumps(GOOD, indent=1))), images)
    assert len(data.train) == 2


def changed(part, entry):
    return GOOD | {part: GOOD[part] + [entry]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not readable JSON"),
        (json.dumps(GOOD)[:-9], "is not readable JSON"),
        (b'{"train": "\xff"}', "is not readable JSON: .*utf-8"),
        (b"\x80\x04]q\x00.", "is not readable JSON"),
        ('{"train": [], "train": [], "val": [], "test": []}', "the key 'train' occurs twice"),
        ('{"train": [["a", NaN, "b"]], "val": [], "test": []}', "NaN is not JSON"),
        ("[" * 100_000, "is not readable JSON"),
        ("[]", "must have the keys .*, got list"),
        ({"train": [], "val": []}, r"must have the keys .*, got \['train', 'val'\]"),
        (GOOD | {"extra": []}, "must have the keys"),
        (GOOD | {"val": {}}, "val must be a list, got dict"),
        ({"train": [], "val": [], "test": []}, r"labels must be 0\.\.C-1 without gaps, got 0"),
        (changed("val", ["a/2.png", 0]), r"val\[1\] must be \[path, integer label, class name\]"),
        (changed("val", ["a/2.png", "0", "x"]), r"val\[1\] must be"),
        (changed("val", ["a/2.png", True, "x"]), r"val\[1\] must be"),
        (changed("val", ["a/2.png", 0.0, "x"]), r"val\[1\] must be"),
        (changed("val", [None, 0, "x"]), r"val\[1\] must be"),
        (
            changed("test", ["a/2.png", 3, "x"]),
            r"without gaps, got 3 labels in 0\.\.3, missing \[2\]",
        ),
        (changed("test", ["a/2.png", -1, "x"]), r"without gaps, got 3 labels in -1\.\.1"),
        (
            changed("test", ["a/2.png", 1, "Snow_dog"]),
            r"'snow_dog' and 'Snow_dog' \(test\) for label 1",
        ),
        (changed("test", ["a/2.png", 2, " "]), "non-empty string"),
        (changed("test", ["/etc/passwd", 1, "snow_dog"]), r"test\[1\]: paths must be relative"),
        (changed("test", ["a/../../x.png", 1, "snow_dog"]), "stay under the image root"),
        (changed("test", ["C:/x.png", 1, "snow_dog"]), "paths must be relative"),
        (changed("test", ["", 1, "snow_dog"]), "paths must be relative"),
        (changed("test", ["a\\2.png", 1, "snow_dog"]), "forward slashes"),
        (changed("test", ["a\0.png", 1, "snow_dog"]), "no NUL"),
    ],
)
def test_refuses(split_file, images, content, message):
    with pytest.raises(ValueError, match=message):
        read_split_json(split_file(content), images)


def test_refuses_a_huge_file(split_file, images, monkeypatch):
    monkeypatch.setattr("vlcal.data.readers.MAX_BYTES", 10)
    with pytest.raises(ValueError, match="must be at most 10 bytes"):
        read_split_json(split_file(GOOD), images)


def test_missing_images_are_counted(split_file, images):
    (images / "a/2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 listed images .* the first is 'a/2\.png'"):
        read_split_json(split_file(GOOD), images)
    data = read_split_json(split_file(GOOD), images, check_files=False)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*a/2\.png"):
        data.read(data.val[0])


def test_missing_split_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="read_split_json: no such file"):
        read_split_json(tmp_path / "none.json", tmp_path)


def test_links_out_of_the_root_need_permission(split_file, images, tmp_path):
    (tmp_path / "outside.png").write_bytes((images / "a/2.png").read_bytes())
    (images / "a/2.png").unlink()
    (images / "a/2.png").symlink_to(tmp_path / "outside.png")
    data = read_split_json(split_file(GOOD), images)
    with pytest.raises(ValueError, match=r"is a link that leaves .*; follow_links=True allows it"):
        data.read(data.val[0])
    allowed = read_split_json(split_file(GOOD), images, follow_links=True)
    assert allowed.read(allowed.val[0]).size == (20, 16)


def test_a_linked_root_is_fine(split_file, images, tmp_path):
    (tmp_path / "linked").symlink_to(images)
    data = read_split_json(split_file(GOOD), tmp_path / "linked")
    assert data.read(data.val[0]).size == (20, 16)


def test_registry_opens_a_split_file_with_its_template(tmp_path, picture):
    for path in ("x/1.png", "y/1.png"):
        picture(path)
    (tmp_path / "dtd").mkdir()
    (tmp_path / "images").rename(tmp_path / "dtd/images")
    entries = [["x/1.png", 0, "banded"], ["y/1.png", 1, "dotted"]]
    split = {"train": entries, "val": [], "test": entries}
    (tmp_path / "dtd/split_zhou_DescribableTextures.json").write_text(json.dumps(split))
    data = open_dataset("dtd", tmp_path)
    assert data.name == "dtd"
    assert data.classes.prompts() == [
        "a photo of a banded, a type of texture.",
        "a photo of a dotted, a type of texture.",
    ]


def test_any_split_file_is_a_dataset(split_file, images, tmp_path):
    path = split_file(GOOD)
    data = open_dataset(str(path), images)
    assert data == read_split_json(path, images)
    (beside := images / "mine.json").write_bytes(path.read_bytes())
    assert open_dataset(str(beside)).train == data.train


@pytest.fixture
def aircraft(tmp_path, picture):
    folder = tmp_path / "fgvc"
    folder.mkdir()
    (folder / "variants.txt").write_bytes(b"707-320\r\nA330 200\r\n")
    for number, part in enumerate(PARTS):
        picture(f"000{number}.jpg")
        variant = "A330 200" if part == "val" else "707-320"
        (folder / f"images_variant_{part}.txt").write_text(f"000{number} {variant}\n")
    return folder


def test_fgvc_labels_follow_variants(aircraft, tmp_path):
    data = read_fgvc(aircraft, tmp_path / "images", template="a {}.")
    assert data.classes.names == ("707-320", "A330 200")
    assert data.train[0] == ("0000.jpg", 0, "707-320")
    assert data.val[0] == ("0001.jpg", 1, "A330 200")


@pytest.mark.parametrize("line", ["0000", "0000 Concorde", "707-320"])
def test_fgvc_refuses_other_lines(aircraft, tmp_path, line):
    (aircraft / "images_variant_val.txt").write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=f"images_variant_val.txt:1 must be .*got '{line}'"):
        read_fgvc(aircraft, tmp_path / "images", template="a {}.")


def test_fgvc_refuses_paths_in_image_ids(aircraft, tmp_path):
    (aircraft / "images_variant_val.txt").write_text("../x 707-320\n")
    with pytest.raises(ValueError, match="stay under the image root"):
        read_fgvc(aircraft, tmp_path / "images", template="a {}.")


def test_fgvc_names_the_missing_text_file(aircraft, tmp_path):
    (aircraft / "variants.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no such file: .*variants\.txt"):
        read_fgvc(aircraft, tmp_path / "images", template="a {}.")

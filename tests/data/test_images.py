"""Any image file becomes RGB, or a sentence with its name."""

import io

import numpy as np
import pytest

from vlcal.data.images import as_rgb, read_image

Image = pytest.importorskip("PIL.Image")
RED = np.full((6, 4, 3), (200, 10, 20), np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "L", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.fromarray(RED).convert(mode).save(tmp_path / f"x.{suffix}")
    image = read_image(tmp_path / f"x.{suffix}")
    assert (image.mode, image.size) == ("RGB", (4, 6))
    if mode in ("RGB", "RGBA", "CMYK"):
        assert np.abs(np.asarray(image).astype(int) - RED).max() <= 1


def test_sixteen_bits_keep_their_high_byte(tmp_path):
    values = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    pixels = np.asarray(read_image(tmp_path / "x.png"))
    assert pixels[..., 0].tolist() == [[0, 0, 1], [128, 255, 255]]


def test_transparent_palette_raises_no_warning(tmp_path):
    image = Image.fromarray(RED).convert("P")
    image.save(tmp_path / "x.png", transparency=bytes([0] * 256))
    assert read_image(tmp_path / "x.png").mode == "RGB"


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(RED), Image.fromarray(255 - RED)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(read_image(tmp_path / "x.gif"))[0, 0, 0] > 150


def test_orientation_tags_are_ignored_as_in_clip(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RED).save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").size == (4, 6)


def jpeg():
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bad\.jpg is empty \(0 bytes\)"),
        (b"not an image", r"bad\.jpg is not a readable image"),
        (jpeg()[:500], r"bad\.jpg is not a readable image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, r"bad\.jpg is not a readable image"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / "bad.jpg")


def test_image_bombs_are_refused(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"x\.png is not a readable image: .*bomb"):
        read_image(tmp_path / "x.png")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="read_image: no such file"):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize(
    "pixels", [RED[..., :2], RED.astype(float), np.zeros((0, 3), np.uint8), np.zeros(3, np.uint8)]
)
def test_refuses_other_arrays(pixels):
    with pytest.raises(ValueError, match=r"pixels must be uint8 \[H, W\] or \[H, W, 3\]"):
        as_rgb(pixels)


def test_arrays_may_be_views():
    assert np.array_equal(np.asarray(as_rgb(RED[::-1])), RED[::-1])
    assert np.array_equal(np.asarray(as_rgb(RED[..., 0]))[..., 2], RED[..., 0])

"""One image file as RGB pixels, or a sentence that names the file and says why not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlcal._optional import optional

if TYPE_CHECKING:
    from vlcal.data.items import Item

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
)


@dataclass(frozen=True)
class ImageFiles:
    """Reads the image of an item: the file `root / item.path` as an RGB PIL image.

    Args:
        root: the folder that item paths are relative to.
        follow_links: allow symbolic links that lead out of `root`.

    Raises:
        ValueError: the file leaves `root`, or is not a readable image.
        FileNotFoundError: there is no such file.
    """

    root: Path
    follow_links: bool = False

    def __call__(self, item: Item) -> Any:
        """The image of `item`."""
        path = self.root / check_relative("ImageFiles", item.path)
        if not self.follow_links and not path.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(
                f"ImageFiles: {item.path!r} is a link that leaves {self.root}; "
                "follow_links=True allows it"
            )
        return read_image(path)


def check_relative(who: str, path: str) -> str:
    """`path`, or a ValueError if it is not a plain relative path with forward slashes."""
    first = path.split("/", 1)[0]
    if not path or path.startswith("/") or ":" in first or ".." in path.split("/"):
        raise ValueError(
            f"{who}: paths must be relative and stay under the image root, got {path!r}"
        )
    if "\\" in path or "\0" in path:
        raise ValueError(f"{who}: paths must use forward slashes and no NUL, got {path!r}")
    return path


def read_image(path: str | Path) -> Any:
    """The image in a file as an RGB PIL image, first frame, orientation tags ignored as CLIP does.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated, too large for Pillow's limit, or not an image.
    """
    pil = optional("PIL.Image", "clip", "read_image")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"read_image: no such file: {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"read_image: {path} is empty (0 bytes)")
    try:
        with pil.open(path) as image:
            image.load()
            return as_rgb(image)
    except (OSError, SyntaxError, ValueError, EOFError, pil.DecompressionBombError) as error:
        raise ValueError(f"read_image: {path} is not a readable image: {error}") from error


def as_rgb(image: Any) -> Any:
    """An 8-bit RGB PIL image from a PIL image of any mode or from uint8 pixels [H, W] or [H, W, 3].

    16-bit grey keeps its high byte: Pillow alone would clip everything above 255 to white.
    """
    pil = optional("PIL.Image", "clip", "as_rgb")
    if isinstance(image, np.ndarray):
        shape_ok = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        if image.dtype != np.uint8 or not shape_ok or 0 in image.shape:
            raise ValueError(
                f"as_rgb: pixels must be uint8 [H, W] or [H, W, 3], got {image.dtype} {image.shape}"
            )
        return pil.fromarray(np.ascontiguousarray(image)).convert("RGB")
    if image.mode == "I" or image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.int64)
        return pil.fromarray((pixels >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")

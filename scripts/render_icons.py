"""Rebuild the images of vlcal/assets/icons139.npz from the npm package @iconify/json.

    npm pack @iconify/json@2.2.535 && tar xzf iconify-json-2.2.535.tgz
    pip install resvg-py pillow
    python scripts/render_icons.py package/json OUT.npz

In every family of families.json, a concept is drawn by the first icon of the file that is not
hidden and whose name is the concept once style words and numbers are taken out (`STYLE`). An icon
is put on a white square with a margin of 4 % of its longer side, `currentColor` is #111, and resvg
renders it at 32x32. The script compares the result with the bundled file and reports every image
that differs.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from vlcal.assets import asset

STYLE = frozenset(
    (
        *("outline", "outlined", "line", "fill", "filled", "solid", "circle", "square", "alt"),
        *("color", "broken", "o", "bold", "light", "bulk", "two", "tone", "duotone", "thin"),
        *("regular", "sharp", "rounded", "round"),
    )
)
SIDE, MARGIN, INK = 32, 0.04, "#111"


def main() -> None:
    """Render, compare with the bundled file, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the package's json folder")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    with np.load(asset("icons139.npz"), allow_pickle=False) as file:
        bundled = dict(file)
    names = bundled["class_names"].tolist()
    drawn: dict[tuple[str, str], np.ndarray] = {}
    for family in json.loads(asset("families.json").read_text(encoding="utf-8")):
        collection = json.loads((args.folder / f"{family}.json").read_text(encoding="utf-8"))
        for concept, icon in chosen(collection, set(names)).items():
            drawn[concept, family] = render(collection, icon)
    rows = list(zip(bundled["labels"].tolist(), bundled["families"].tolist(), strict=True))
    keys = [(names[label], family) for label, family in rows]
    report(keys, bundled["images"], drawn)
    images = np.stack([drawn[key] for key in keys])
    np.savez_compressed(args.out, **(bundled | {"images": images}))


def chosen(collection: dict[str, Any], concepts: set[str]) -> dict[str, str]:
    """The icon name of every concept that the family draws."""
    found: dict[str, str] = {}
    for name, icon in collection["icons"].items():
        words = [word for word in name.split("-") if word not in STYLE and not word.isdigit()]
        if " ".join(words) in concepts and not icon.get("hidden"):
            found.setdefault(" ".join(words), name)
    return found


def render(collection: dict[str, Any], name: str) -> np.ndarray:
    """The icon as uint8 [32, 32], dark on white."""
    import resvg_py
    from PIL import Image

    icon = {"left": 0, "top": 0, "width": 16, "height": 16} | collection | collection["icons"][name]
    width, height = icon["width"], icon["height"]
    side = max(width, height) * (1 + 2 * MARGIN)
    x, y = icon["left"] + (width - side) / 2, icon["top"] + (height - side) / 2
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIDE}" height="{SIDE}" viewBox="{x} {y} {side} {side}" color="{INK}">'
        f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="#fff"/>'
        f"{icon['body'].replace('currentColor', INK)}</svg>"
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE))
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def report(keys: list, images: np.ndarray, drawn: dict) -> None:
    """Print what is missing, what is more, and how far the pixels are apart."""
    missing = [key for key in keys if key not in drawn]
    more = sorted(set(drawn) - set(keys))
    print(f"icons of the bundled file that were not found: {missing}")
    print(f"icons found that the bundled file does not have: {more}")
    apart = [
        (int(np.abs(drawn[key].astype(int) - image).max()), key)
        for key, image in zip(keys, images, strict=True)
        if key in drawn
    ]
    equal = sum(difference == 0 for difference, _ in apart)
    print(f"equal in every pixel: {equal} of {len(keys)}; the farthest: {max(apart)}")


if __name__ == "__main__":
    main()

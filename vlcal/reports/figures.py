"""Figures without pyplot: one palette, one way to make them, one way to write SVG or PNG.

The page recolors the palette for dark screens by its hexadecimal values, so pictures use these
colors and no others.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from vlcal._optional import optional

INK = "#262626"
MUTED = "#6b6f76"
RULE = "#dcdfe3"
BAR = "#c6cad0"
PAPER = "#ffffff"
OVER = "#d55e00"
UNDER = "#0072b2"
RIGHT = "#009e73"
WRONG = "#cc79a7"

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"
_settings = threading.Lock()


def new_figure(width: float, height: float, who: str) -> Any:
    """A white matplotlib Figure of `width` x `height` inches that pyplot does not know about."""
    optional("matplotlib", "report", who)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=PAPER, edgecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def place(figure: Any, left: float, top: float, width: float, height: float, **options: Any) -> Any:
    """New axes at a place in inches, measured from the left and the top edge of the figure."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h), **options)


def style_axes(ax: Any, *, grid: bool = True) -> None:
    """Thin left and bottom axes, a light grid behind the data, small muted tick labels."""
    ax.set_facecolor(PAPER)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
        ax.spines[side].set_linewidth(0.8)
    ax.tick_params(colors=MUTED, labelsize=8, length=3, width=0.8)
    ax.xaxis.label.set(color=INK, fontsize=9)
    ax.yaxis.label.set(color=INK, fontsize=9)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(color=RULE, linewidth=0.6)


def percent_ticks(*axes: Any) -> None:
    """Fractions on these x or y axes are labelled in percent, with the digits that they need."""
    for axis in axes:
        axis.set_major_formatter(lambda value, _: f"{round(100 * value, 6):g}")


def set_title(ax: Any, text: str) -> None:
    """A title at the left, shown as given and never parsed as mathematics."""
    ax.set_title(label(text), loc="left", fontsize=10.5, color=INK, pad=8, parse_math=False)


def label(text: object) -> str:
    """Text that the figure font can draw: other characters become a square, line breaks a space."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    words = " ".join(str(text).split())
    return "".join(c if ord(c) in known else "\N{WHITE SQUARE}" for c in words)


def legible_xml(text: object) -> str:
    """Text without the characters that XML 1.0 forbids (control characters, lone surrogates)."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", str(text))


def to_png(figure: Any, dpi: int = 150) -> bytes:
    """The figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def to_svg(
    figure: Any, name: str, description: str = "", hovers: Mapping[str, Sequence[str]] | None = None
) -> str:
    """The figure as one `<svg>` element; the same figure gives the same bytes.

    Args:
        figure: a matplotlib Figure.
        name: prefix of every id inside, so that several pictures fit in one page.
        description: text for screen readers.
        hovers: for the group id of a scatter, one hover text per dot, in the order of the dots.

    Raises:
        ValueError: a group is missing or does not have as many dots as texts.
    """
    root = ElementTree.fromstring(_draw(figure))
    for metadata in root.findall(f"{_SVG}metadata"):
        root.remove(metadata)
    for group, texts in (hovers or {}).items():
        _add_hovers(root, group, texts)
    _rename_ids(root, name)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        if (link := element.attrib.pop(f"{_XLINK}href", None)) is not None:
            element.set("href", link)
    root.attrib.update(xmlns=_SVG[1:-1], role="img")
    root.set("aria-label", legible_xml(description or name))
    return ElementTree.tostring(root, encoding="unicode")


def _draw(figure: Any) -> bytes:
    # matplotlib reads these two only from its global settings; the lock keeps our own threads apart
    import matplotlib

    file = io.BytesIO()
    wanted = {"svg.hashsalt": "vlcal", "svg.fonttype": "none"}
    settings: Any = matplotlib.rcParams
    with _settings:
        before = {key: settings[key] for key in wanted}
        settings.update(wanted)
        try:
            figure.savefig(file, format="svg", metadata={"Date": None})
        finally:
            settings.update(before)
    return file.getvalue()


def _add_hovers(root: ElementTree.Element, group: str, texts: Sequence[str]) -> None:
    found = root.find(f".//*[@id='{group}']")
    in_defs = set() if found is None else {e for d in found.iter(f"{_SVG}defs") for e in d.iter()}
    dots = [
        element
        for element in ([] if found is None else found.iter())
        if element.tag in (f"{_SVG}use", f"{_SVG}path") and element not in in_defs
    ]
    if len(dots) != len(texts):
        raise ValueError(f"to_svg: group {group!r} has {len(dots)} dots, got {len(texts)} texts")
    for dot, text in zip(dots, texts, strict=True):
        ElementTree.SubElement(dot, f"{_SVG}title").text = legible_xml(text)


def _rename_ids(root: ElementTree.Element, name: str) -> None:
    prefix = re.sub(r"[^A-Za-z0-9-]+", "-", name)
    style = [e.get(a, "") for e in root.iter() for a in ("style", "clip-path")]
    links = [e.get(f"{_XLINK}href", "") for e in root.iter()]
    used = set(re.findall(r"url\(#([^)]+)\)", " ".join(style))) | {x[1:] for x in links if x}
    new = {old: f"{prefix}-{i}" for i, old in enumerate(sorted(used))}
    for element in root.iter():
        if (old := element.attrib.pop("id", None)) in new:
            element.set("id", new[old])
        if link := element.get(f"{_XLINK}href"):
            element.set(f"{_XLINK}href", "#" + new[link[1:]])
        for attribute in ("style", "clip-path"):
            if (value := element.get(attribute)) and "url(#" in value:
                text = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{new[m[1]]})", value)
                element.set(attribute, text)

"""Word lists for open vocabularies: the nouns of WordNet 3.0, or any text file."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from vlcal.assets import asset

MAX_BYTES = 256 << 20


def nouns(path: str | Path | None = None, *, spaces: bool = True) -> list[str]:
    """The words of a list, each once, in order of first appearance.

    Args:
        path: a UTF-8 text file, one word a line, plain or gzipped; by default the 117,798 noun
            lemmas of WordNet 3.0 that come with the package.
        spaces: turn underscores into spaces, as prompts need.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not text, is damaged, has no words, or is larger than 256 MiB.
    """
    path = asset("wordnet30_noun_lemmas.txt.gz") if path is None else Path(path)
    try:
        text = _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"nouns: {path} is not UTF-8 text: {error}") from error
    if spaces:
        text = text.replace("_", " ")
    words = list(dict.fromkeys(word for line in text.splitlines() if (word := line.strip())))
    if not words:
        raise ValueError(f"nouns: {path} has no words")
    return words


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"nouns: no such file: {path}")
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if zipped else open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"nouns: {path} is a damaged gzip file: {error}") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"nouns: {path} must hold at most {MAX_BYTES} bytes of text")
    return content

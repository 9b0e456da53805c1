"""Word lists: every word once, in order, from any text file that is whole."""

import gzip

import pytest

from vlcal.data import nouns


def test_bundled_nouns_are_wordnet():
    words = nouns()
    assert len(words) == len(set(words)) == 117_798
    assert {"dog", "petroleum refinery"} <= set(words)
    assert "petroleum_refinery" in nouns(spaces=False)


@pytest.mark.parametrize("zipped", [False, True])
def test_any_file_gives_each_word_once_in_order(tmp_path, zipped):
    content = "\ufeffcat\r\nice_cream\r\n\r\n cat \r\nice cream\r\nЩит\r\n".encode()
    path = tmp_path / "words.txt"
    path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    assert nouns(path) == ["cat", "ice cream", "Щит"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no words"),
        (b" \n\n", "has no words"),
        (b"caf\xe9\n", "is not UTF-8 text"),
        (gzip.compress(b"cat\n" * 1000, mtime=0)[:30], "is a damaged gzip file"),
        (b"\x1f\x8bnothing", "is a damaged gzip file"),
    ],
)
def test_refuses_what_is_not_a_list_of_words(tmp_path, content, message):
    path = tmp_path / "words"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        nouns(path)


def test_refuses_a_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("vlcal.data.vocabulary.MAX_BYTES", 1000)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"a\n" * 1000, mtime=0))
    with pytest.raises(ValueError, match="at most 1000 bytes"):
        nouns(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nouns: no such file"):
        nouns(tmp_path / "none.txt")

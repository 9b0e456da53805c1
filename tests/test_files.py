"""Files are whole or absent, and a full disk is told with the name of the file."""

import resource
import signal
from contextlib import contextmanager

import pytest

from vlcal._files import append_line, write_atomic


@contextmanager
def full_disk():
    """Within it no file grows beyond 100 bytes; not a fixture, because pytest writes files, too."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_that_does_not_fit_is_named_and_the_old_one_stays(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, "old")
    with pytest.raises(OSError, match=r"too large: .*a\.json"), full_disk():
        write_atomic(path, "x" * 1000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_that_does_not_fit_is_an_error_and_no_silent_half(tmp_path):
    path = tmp_path / "a.jsonl"
    append_line(path, "x" * 50)
    cut = r"only a part of a line could be written: .*a\.jsonl"
    with pytest.raises(OSError, match=cut), full_disk():
        append_line(path, "y" * 90)
    with pytest.raises(OSError, match=r"too large: .*a\.jsonl"), full_disk():
        append_line(path, "z")

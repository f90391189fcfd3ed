"""Lines in and out: they end at LF alone, none is lost, and nothing is written over by accident."""

import gzip
import io
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtattn.errors import ConfigError, FileError
from mtattn.progress import Reporter
from mtattn.textio import open_lines, open_output

line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=8)


class Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def read(path) -> list[str]:
    with open_lines(path, Reporter()) as lines:
        return list(lines)


@given(st.lists(line, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_every_line_comes_back(tmp_path_factory, lines, end, bom):
    path = tmp_path_factory.mktemp("t") / "x"
    path.write_bytes(b"\xef\xbb\xbf" * bom + "".join(text + end for text in lines).encode())
    expected = [text.removeprefix("\ufeff") if not bom and i == 0 else text for i, text in enumerate(lines)]
    assert read(path) == expected


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a\nb", ["a", "b"]),
        (b"a\n\n", ["a", ""]),
        (b"\xef\xbb\xbf\n\xef\xbb\xbfa\n", ["", "\ufeffa"]),
        (b"a\rb\r\r\n", ["a\rb\r"]),
        ("a\u2028b\x85c\x0bd\x0ce\x00f\n".encode(), ["a\u2028b\x85c\x0bd\x0ce\x00f"]),
    ],
)
def test_lines_end_at_line_feeds_alone(tmp_path, monkeypatch, content, lines):
    (tmp_path / "x").write_bytes(content)
    assert read(tmp_path / "x") == lines
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    assert read(None) == lines


def test_invalid_utf8_is_replaced_and_counted(tmp_path, capsys):
    (tmp_path / "x").write_bytes(b"good\nb\xffd\n\xed\xa0\x80\n")
    assert read(tmp_path / "x") == ["good", "b\ufffdd", "\ufffd\ufffd\ufffd"]
    warning = capsys.readouterr().err
    assert "x: 2 lines are not valid UTF-8 (first line 2); bad bytes were replaced" in warning


def test_gzip_is_read_and_damage_said(tmp_path):
    (tmp_path / "x.gz").write_bytes(packed := gzip.compress(b"eins\nzwei\n"))
    assert read(tmp_path / "x.gz") == ["eins", "zwei"]
    for damaged, why in ((b"eins\n", "Not a gzipped file"), (packed[:-9], "ended before"), (packed[:12], ".+")):
        (tmp_path / "x.gz").write_bytes(damaged)
        with pytest.raises(FileError, match=rf"x\.gz: cannot be read: .*{why}"):
            read(tmp_path / "x.gz")


def test_a_missing_file(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileError, match=f"{path}: cannot be read: "), open_lines(path, Reporter()):
            pass


def write(path, lines, **options) -> None:
    with open_output(path, *options.pop("sources", ()), **options) as out:
        for text in lines:
            out(text)


def test_output_lines_end_in_line_feeds(tmp_path):
    write(tmp_path / "x", ["a", "", "ü\u2028"])
    assert (tmp_path / "x").read_bytes() == "a\n\nü\u2028\n".encode()


def test_output_is_there_line_by_line(tmp_path, capfdbinary):
    for path in (tmp_path / "x", None):
        with open_output(path, None) as out:
            out("one")
            assert (path.read_bytes() if path else capfdbinary.readouterr().out) == b"one\n"


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ConfigError, match="exists already; --force"):
        write(path, ["new"])
    assert path.read_text() == "old"
    write(path, ["new"], force=True)
    assert path.read_text() == "new\n"


def test_what_is_no_regular_file_holds_nothing_to_lose():
    with open_output(Path(os.devnull)) as write:
        write("gone")


def test_the_input_is_never_overwritten(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "other").write_text("other")
    for sources in ((path,), (tmp_path / "link",), (None, tmp_path / "other", path)):
        with pytest.raises(ConfigError, match="is also the input"):
            write(path, ["new"], sources=sources, force=True)
    assert path.read_text() == "old"


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(FileError, match=r"there is no folder .*no; make it first"):
        write(tmp_path / "no" / "x", ["a"])


def test_a_full_disk_is_said():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(FileError, match="/dev/full: cannot be written: No space left"):
        write(full, ["a"], force=True)


def test_an_error_of_the_caller_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(OSError, match="elsewhere"), open_output(tmp_path / "x", None):
        raise OSError("elsewhere")


def test_a_reader_that_left_is_not_an_error_of_the_file(monkeypatch):
    class Closed:
        def write(self, content: bytes) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            pass

    class Stdout:
        buffer = Closed()

    monkeypatch.setattr(sys, "stdout", Stdout())
    with pytest.raises(BrokenPipeError):
        write(None, ["a"])


def test_what_standard_input_reads_is_not_written_over(tmp_path, monkeypatch):
    path = tmp_path / "text"
    path.write_text("keep\n")
    with path.open() as redirected:
        monkeypatch.setattr(sys, "stdin", redirected)
        with pytest.raises(ConfigError, match="text: is also the input"), open_output(path, None, force=True):
            pass
    assert path.read_text() == "keep\n"


def test_what_standard_output_writes_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "text"
    path.write_text("keep\n")
    with path.open("a") as redirected:
        monkeypatch.setattr(sys, "stdout", redirected)
        with pytest.raises(ConfigError, match="standard output: is also the input"), open_output(None, path):
            pass


def test_a_folder_is_no_output(tmp_path):
    for force in (False, True):
        with pytest.raises(ConfigError, match="is a folder; name a file"), open_output(tmp_path, force=force):
            pass


def test_closed_streams_are_said(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(FileError, match="standard input: is closed"), open_lines(None, Reporter()):
        pass
    with pytest.raises(FileError, match="standard output: is closed"), open_output(None):
        pass


def test_a_new_file_that_nothing_was_written_to_does_not_stay(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), open_output(path):
        raise ZeroDivisionError
    assert not path.exists()
    with pytest.raises(ZeroDivisionError), open_output(path) as write:
        write("a")
        raise ZeroDivisionError
    assert path.read_text() == "a\n"
    path.write_text("")
    with pytest.raises(ZeroDivisionError), open_output(path, force=True):
        raise ZeroDivisionError
    assert path.exists()


def test_what_stood_there_is_lost_with_the_first_line_alone(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("keep\n" * 9)
    with pytest.raises(KeyError), open_output(path, force=True):
        raise KeyError
    assert path.read_text() == "keep\n" * 9
    with open_output(path, force=True) as write:
        write("new")
    assert path.read_text() == "new\n"
    with open_output(path, force=True):
        pass
    assert path.read_text() == ""

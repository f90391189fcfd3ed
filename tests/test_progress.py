"""Progress: plain lines away from a terminal, a bar on one, text as it is, and a log beside."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from mtattn import progress
from mtattn.progress import Reporter


def test_notes_go_to_stderr_alone_as_they_are(capsys):
    text = "a [bold]b[/bold] :smile: [/x] 3.5 'q' " + "long " * 60
    Reporter().note(text)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == text + "\n"


def test_warnings_say_so(capsys):
    Reporter().warn("look")
    assert capsys.readouterr().err == "warning: look\n"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0"}, "said\n"),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "1"}, ""),
        ({"RANK": "1"}, "said\n"),
    ],
)
def test_of_many_processes_one_speaks(environment, expected, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Reporter().note("said")
    assert capsys.readouterr().err == expected


def test_the_log_holds_notes_with_their_time(tmp_path, capsys):
    report = Reporter()
    report.note("before")
    for text in ("one", "zwei ü"):
        report.log_to(tmp_path / "train.log")
        report.note(text)
        report.close()
    report.note("after")
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in lines] == ["one", "zwei ü"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    assert capsys.readouterr().err == "before\none\nzwei ü\nafter\n"


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_that_cannot_be_written_is_given_up(capsys):
    reporter = Reporter()
    reporter.log_to(Path("/dev/full"))
    for text in ("one", "two"):
        reporter.note(text)
    said = capsys.readouterr().err
    assert said == "one\nwarning: /dev/full: cannot be written, so nothing more is: No space left on device\ntwo\n"


def test_plain_lines_come_every_few_seconds(capsys, clock):
    with Reporter().bar("encoding", 1000) as bar:
        for clock[0] in (1.0, 4.9, 5.0, 9.0, 11.0):
            bar.advance(clock[0] * 10, "fast [x]")
    assert capsys.readouterr().err == (
        "encoding: 50 of 1000, 1:35 left  fast [x]\nencoding: 110 of 1000, 1:29 left  fast [x]\n"
    )


def test_an_unknown_total_has_no_time_left(capsys, clock):
    with Reporter().bar("reading", None) as bar:
        clock[0] = 6.0
        bar.advance(7)
    assert capsys.readouterr().err == "reading: 7\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0:00"), (59.9, "0:59"), (61, "1:01"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_durations(seconds, text):
    assert progress._duration(seconds) == text


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    report = Reporter()
    report.console = Console(stderr=True, force_terminal=True)
    with report.bar("training", 10) as bar:
        bar.advance(5, "loss 2.00")
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "\x1b[" in shown  # drawn in place, and cleared at the end


def test_a_terminal_that_cannot_draw_has_plain_lines(capsys, clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    report = Reporter()
    report.console = Console(stderr=True, force_terminal=True)
    with report.bar("training", 10) as bar:
        clock[0] = 6.0
        bar.advance(5)
    assert capsys.readouterr().err == "training: 5 of 10, 0:06 left\n"

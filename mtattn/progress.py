"""What a person sees on stderr while work goes on: a bar on a terminal, a plain line every few seconds elsewhere."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mtattn.streams import discard

PLAIN_EVERY = 5.0  # seconds between plain lines


class Bar(Protocol):
    """One phase of work, under way."""

    def advance(self, done: float, text: str = "") -> None:
        """Say how much is done in all, and what is worth knowing now."""


class Reporter:
    """Notes, warnings and bars on stderr, and all but the bars in the run's train.log once there is one."""

    def __init__(self) -> None:
        # Of the processes that torchrun starts, the first one speaks.
        quiet = "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0"
        self.console = _Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, quiet=quiet)
        self._log: TextIO | None = None

    def log_to(self, path: Path) -> None:
        """From now on, append every note to this file too."""
        self._log = path.open("a", encoding="utf-8", errors="backslashreplace")

    def close(self) -> None:
        """Write no more to that file."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def note(self, text: str) -> None:
        """One line for the user."""
        self.console.print(text, markup=False)
        if self._log is not None:
            try:
                self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
                self._log.flush()
            except OSError as error:  # what is learnt is worth more than its log
                log, self._log = self._log, None
                with suppress(OSError):  # it would try once more
                    log.close()
                self.warn(f"{log.name}: cannot be written, so nothing more is: {error.strerror}")

    def warn(self, text: str) -> None:
        """One line that wants attention."""
        self.note(f"warning: {text}")

    @contextmanager
    def bar(self, name: str, total: float | None) -> Iterator[Bar]:
        """Show one phase; `total` is the amount of work, None when it is unknown."""
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            yield _PlainBar(self.console, name, total)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield _RichBar(progress, progress.add_task(name, total=total, text=""))


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does; where stderr takes no more, as on a full disk, what is at work goes on, silently."""
        try:
            super().print(*objects, **options)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Nobody reads any more, as after `2>&1 | head`: what is at work goes on, silently. rich would exit."""
        self.quiet = True
        discard(sys.stderr)


class _RichBar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, done: float, text: str = "") -> None:
        self._progress.update(self._task, completed=done, text=text)


class _PlainBar:
    def __init__(self, console: Console, name: str, total: float | None) -> None:
        self._console, self._name, self._total = console, name, total
        self._started = self._shown = time.monotonic()

    def advance(self, done: float, text: str = "") -> None:
        now = time.monotonic()
        if now - self._shown < PLAIN_EVERY:
            return
        self._shown = now
        of = "" if self._total is None else f" of {self._total:.0f}"
        left = ""
        if self._total and done > 0:
            left = f", {_duration((now - self._started) * (self._total - done) / done)} left"
        self._console.print(f"{self._name}: {done:.0f}{of}{left}  {text}".rstrip(), markup=False)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"

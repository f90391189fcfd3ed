"""SIGTERM and Ctrl-C: the first asks for one save and a clean exit, a second leaves at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import NoReturn, TypeVar

T = TypeVar("T")

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
INTERRUPTIBLE = "mtattn: interruptible"  # the name of the threads that `interruptible` makes


class Interrupted(BaseException):
    """The user or the system asked to stop; not an Exception, so that nothing swallows it."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Interrupts:
    """While entered, a first signal raises Interrupted at once, or waits for `check` inside `deferred` work.

    A second signal ends the process on the spot; what was saved before is whole, as every save is atomic.
    """

    def __init__(self) -> None:
        self.deferred = False
        self._signal: signal.Signals | None = None
        self._before: dict[signal.Signals, signal.Handlers | None] = {}

    def __enter__(self) -> "Interrupts":
        for number in EXIT_CODES:
            self._before[number] = signal.getsignal(number)  # type: ignore[assignment]
            signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            os._exit(EXIT_CODES[signal.Signals(number)])
        self._signal = signal.Signals(number)
        if not self.deferred:
            raise Interrupted(EXIT_CODES[self._signal])

    def check(self) -> None:
        """Raise Interrupted when a signal came while it was deferred."""
        if self._signal is not None:
            raise Interrupted(EXIT_CODES[self._signal])


def interruptible(work: Callable[[], T]) -> T:
    """Do long work inside a library in such a way that a signal still takes effect at once.

    Python runs signal handlers in the main thread, between two instructions of its own, so a library's call of minutes
    would hold them off for minutes. In a thread of its own the call leaves the main thread free to handle them, if the
    library lets go of Python's lock. When a handler raises, the thread is left behind; see `leave`.

    Returns:
        What the work returned.

    Raises:
        What the work, or a signal handler, raised.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name=INTERRUPTIBLE, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def leave(exit_code: int) -> NoReturn:
    """End the program: in good order, or at once where a thread was left behind inside a library.

    Such a thread would go on while Python and the library are taken down under it, and crash.
    """
    if any(thread.name == INTERRUPTIBLE for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, AttributeError):  # nobody reads it, or it is closed
                stream.flush()
        os._exit(exit_code)
    sys.exit(exit_code)

"""SIGTERM and Ctrl-C: the first asks for one save and a clean exit, a second leaves at once."""

import os
import signal
from types import FrameType, TracebackType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


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

"""SIGTERM and Ctrl-C: the first stops in good order, the second at once."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from mtattn.interrupts import Interrupted, Interrupts, interruptible, leave

BOTH = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


def exit_status(work: Callable[[], None]) -> int:
    """How a forked child ends that does this work; 0 when it comes to the end."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@BOTH
def test_a_signal_interrupts_at_once(number: signal.Signals, code: int) -> None:
    with pytest.raises(Interrupted) as caught, Interrupts():
        signal.raise_signal(number)
    assert caught.value.exit_code == code


@BOTH
def test_deferred_work_goes_on_until_it_checks(number: signal.Signals, code: int) -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        interrupts.deferred = True
        signal.raise_signal(number)
        with pytest.raises(Interrupted) as caught:
            interrupts.check()
    assert caught.value.exit_code == code


@BOTH
def test_a_second_signal_ends_the_process(number: signal.Signals, code: int) -> None:
    def twice() -> None:
        with Interrupts() as interrupts:
            interrupts.deferred = True
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(number)

    assert exit_status(twice) == code


def test_an_interruption_that_was_swallowed_is_not_forgotten() -> None:
    with Interrupts() as interrupts:
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            interrupts.check()


def test_nothing_that_catches_exceptions_swallows_it() -> None:
    assert not issubclass(Interrupted, Exception)


def test_the_handlers_from_before_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_interruptible_work_returns_and_raises() -> None:
    assert interruptible(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0)


@BOTH
def test_a_signal_takes_effect_inside_a_librarys_call(number: signal.Signals, code: int) -> None:
    def work() -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        try:
            with Interrupts():
                interruptible(lambda: time.sleep(60))  # C code that lets go of Python's lock
        except Interrupted as interrupted:
            leave(interrupted.exit_code)

    assert exit_status(work) == code


def test_leaving_in_good_order() -> None:
    with pytest.raises(SystemExit) as left:
        leave(143)
    assert left.value.code == 143

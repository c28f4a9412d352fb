"""Ctrl-C and SIGTERM: a training saves its step first, everything else just leaves.

The exit status is 128 + the signal's number, as in shells: 130 after Ctrl-C, 143 after SIGTERM.
No handler raises: an exception that comes from nowhere is swallowed where Python cannot pass it on.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A cluster signals every process of a job, and the parent of a sweep's member hands it on: what
# follows within this many seconds is the same request.
_SAME_REQUEST = 1.0
_LEAVING = threading.Lock()


class Stopped(SystemExit):
    """Ends the program because a signal asked for it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = number


class Request:
    """What a signal has asked for.

    Attributes:
      signal: number of the first one, 0 while none came.
    """

    signal = 0

    def check(self) -> None:
        """Raises Stopped if a signal came."""
        if self.signal:
            raise Stopped(self.signal)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Within, a signal ends the process, also in the middle of a compilation.

    Within `deferred` only the second one does. Handlers of others are theirs at the first one, too.
    Python runs handlers between two lines of the main thread, which may be minutes from here; so a
    thread of its own waits for the signals as well.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with _handled(_leave_at_once):
        former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        watcher = threading.Thread(target=_watch, args=[reading], daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(former)
            os.close(writing)
            watcher.join()
            os.close(reading)


@contextlib.contextmanager
def deferred(request: Request) -> Iterator[None]:
    """Within, the first signal is only noted in `request`; the caller looks, saves and leaves.

    Outside of the main thread, which alone gets signals, nothing is noted.
    """
    began = 0.0

    def note(number: int, frame: Any) -> None:
        nonlocal began
        if not request.signal:
            request.signal, began = number, time.monotonic()
            _tell("stopping after this step; once more, a second later, to leave at once")
        elif time.monotonic() - began > _SAME_REQUEST and callable(former[number]):
            former[number](number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled(note) as former:
        yield


@contextlib.contextmanager
def _handled(handler: Any) -> Iterator[dict[int, Any]]:
    """Installs a handler of those signals that are not ignored; gives the former ones."""
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    former: dict[int, Any] = {number: signal.signal(number, handler) for number in heard}
    try:
        yield former
    finally:
        for number, before in former.items():
            signal.signal(number, before)


def _leave_at_once(number: int, frame: Any) -> NoReturn:
    _leave(number, "stopped by {}; the same command starts again")


def _watch(pipe: int) -> None:
    """Waits for signals: a pipe has the number of each as a byte, and ends with the listening."""
    began = 0.0
    while numbers := os.read(pipe, 64):
        for number in numbers:
            if number not in _SIGNALS:
                continue
            if signal.getsignal(number) is _leave_at_once:
                _leave_at_once(number, None)
            began = began or time.monotonic()
            if time.monotonic() - began > _SAME_REQUEST:
                _leave(number, "left at once by {}")


def _leave(number: int, line: str) -> NoReturn:
    with _LEAVING:  # for good: the main thread and the watching one may both come here
        _tell(line.format(signal.Signals(number).name))
        os._exit(128 + number)


def _tell(line: str) -> None:
    # A signal may come in the middle of a print, which cannot be entered twice.
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(2, f"gsjax: {line}\n".encode())

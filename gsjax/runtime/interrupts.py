"""Signals: a training run saves its step first, everything else exits immediately.

Ctrl-C (SIGINT), SIGTERM, SIGHUP (terminal closed), SIGUSR1 and SIGUSR2 (sent by SLURM and submitit
before a time limit) and SIGXCPU (CPU time limit) are all handled alike. The exit status is 128 +
the signal number, as in shells: 130 after Ctrl-C, 143 after SIGTERM. SIGQUIT (Ctrl-\\) keeps its
default action. Handlers never raise: an exception out of nowhere gets swallowed wherever Python
cannot propagate it.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from gsjax.runtime import output

SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
# A cluster signals every process of a job, and a sweep forwards signals to its member: signals
# within this many seconds count as the same request.
_SAME_REQUEST = 1.0
_EXITING = threading.Lock()


class Stopped(SystemExit):
    """Exits the program in response to a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = number


class Request:
    """A request to stop, made by a signal.

    Attributes:
      signal: number of the first signal received; 0 if none.
    """

    signal = 0

    def check(self) -> None:
        """Raises Stopped if a signal has arrived."""
        if self.signal:
            raise Stopped(self.signal)


class _Patience:
    """Distinguishes an impatient user from a scheduler that repeats its signals.

    SLURM sends SIGUSR1 and later SIGTERM; a CPU time limit sends SIGXCPU every second. Neither may
    interrupt a save.
    """

    def __init__(self) -> None:
        self._began: dict[int, float] = {}

    def ends(self, number: int) -> bool:
        """Whether this signal asks to exit without saving.

        Ctrl-C does over a second after any signal, SIGTERM over a second after another SIGTERM.
        """
        now = time.monotonic()
        began = self._began.get(number, now)
        if number == signal.SIGINT:
            began = min([now, *self._began.values()])
        self._began.setdefault(number, now)
        return number in (signal.SIGINT, signal.SIGTERM) and now - began > _SAME_REQUEST


def handled() -> list[int]:
    """Returns the signals to handle, without those that are ignored (`nohup` ignores SIGHUP).

    Except for Ctrl-C and SIGTERM, also leaves out signals for which the calling program has its own
    handler, as submitit does for SIGUSR2.
    """
    return [number for number in SIGNALS if _is_ours(number, signal.getsignal(number))]


def _is_ours(number: int, handler: Any) -> bool:
    if number in (signal.SIGINT, signal.SIGTERM):
        return handler not in (signal.SIG_IGN, None)  # None: installed from C
    return handler in (signal.SIG_DFL, _exit_now)


@contextlib.contextmanager
def exit_on_signal() -> Iterator[None]:
    """While active, a signal ends the process, even in the middle of a compilation.

    Inside `deferred`, only an impatient signal does. Python runs handlers between two bytecodes of
    the main thread, which may be minutes apart, so a separate thread also waits for signals.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with _handling(_exit_now):
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
    """While active, only records the first signal in `request`; the caller checks, saves and exits.

    Does nothing outside the main thread, which is the only one to receive signals.
    """
    patience = _Patience()

    def record(number: int, frame: Any) -> None:
        impatient = patience.ends(number)
        if not request.signal:
            request.signal = number
            name = signal.Signals(number).name
            output.print_stderr(
                f"gsjax: {name}: stopping after this step; to exit without saving, press Ctrl-C "
                "after one second"
            )
        elif impatient and callable(former[number]):
            former[number](number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handling(record) as former:
        try:
            yield
        finally:
            if request.signal:
                _ignore_repeats(former)


@contextlib.contextmanager
def _handling(handler: Any) -> Iterator[dict[int, Any]]:
    """Installs a handler for each signal; yields the previous handlers."""
    former: dict[int, Any] = {number: signal.signal(number, handler) for number in handled()}
    try:
        yield former
    finally:
        for number, before in former.items():
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, before)


def _ignore_repeats(former: dict[int, Any]) -> None:
    """While the program exits, ignores all signals but Ctrl-C: schedulers repeat theirs."""
    for number, before in former.items():
        if before is _exit_now and number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)


def _exit_now(number: int, frame: Any) -> NoReturn:
    _exit(number, "stopped by {}; rerun the same command")


def _watch(pipe: int) -> None:
    """Waits for signals: the pipe carries each signal's number as a byte and closes at the end."""
    patience = _Patience()
    while numbers := os.read(pipe, 64):
        for number in numbers:
            if number not in SIGNALS:
                continue
            handler = signal.getsignal(number)
            if handler is _exit_now:
                _exit_now(number, None)
            if callable(handler) and patience.ends(number):
                _exit(number, "stopped immediately by {}")


def _exit(number: int, line: str) -> NoReturn:
    with _EXITING:  # never released: the main thread and the watcher may both get here
        output.print_stderr(f"gsjax: {line.format(signal.Signals(number).name)}")
        os._exit(128 + number)

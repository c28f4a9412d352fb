"""Signals: a training run saves its step first, everything else exits immediately.

Ctrl-C (SIGINT), SIGTERM, SIGHUP (the terminal was closed), SIGUSR1 and SIGUSR2 (SLURM and submitit
send them before a time limit) and SIGXCPU (a limit of CPU time) are all handled alike. The exit
status is 128 + the signal's number, as in shells: 130 after Ctrl-C, 143 after SIGTERM. SIGQUIT
(Ctrl-\\) keeps its default action. No handler raises: an exception from nowhere gets swallowed
where Python cannot propagate it.
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
# A cluster signals every process of a job, and the parent of a sweep's member forwards signals:
# what follows within this many seconds belongs to the same request.
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


class _Patience:
    """Tells a user who does not want to wait from a scheduler that repeats itself.

    SLURM sends SIGUSR1 and later SIGTERM, a limit of CPU time SIGXCPU every second; neither may
    interrupt a save.
    """

    def __init__(self) -> None:
        self._began: dict[int, float] = {}

    def ends(self, number: int) -> bool:
        """Whether this signal asks to exit without saving.

        Ctrl-C does after any other signal, SIGTERM after another SIGTERM, over a second later.
        """
        now = time.monotonic()
        began = self._began.get(number, now)
        if number == signal.SIGINT:
            began = min([now, *self._began.values()])
        self._began.setdefault(number, now)
        return number in (signal.SIGINT, signal.SIGTERM) and now - began > _SAME_REQUEST


def handled() -> list[int]:
    """The signals to handle: not those that are ignored (`nohup` ignores SIGHUP).

    Nor those, other than Ctrl-C and SIGTERM, for which the calling program has a handler of its
    own, as submitit does for SIGUSR2.
    """
    return [number for number in SIGNALS if _is_ours(number, signal.getsignal(number))]


def _is_ours(number: int, handler: Any) -> bool:
    if number in (signal.SIGINT, signal.SIGTERM):
        return handler not in (signal.SIG_IGN, None)  # None was installed from C
    return handler in (signal.SIG_DFL, _leave_at_once)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Within, a signal ends the process, even in the middle of a compilation.

    Within `deferred` only an impatient one does. Python runs handlers between two lines of the
    main thread, which may be minutes apart; so a separate thread waits for the signals as well.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with _handling(_leave_at_once):
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
    """Within, the first signal is only noted in `request`; the caller checks, saves and exits.

    Outside of the main thread, which alone receives signals, nothing is noted.
    """
    patience = _Patience()

    def note(number: int, frame: Any) -> None:
        impatient = patience.ends(number)
        if not request.signal:
            request.signal = number
            name = signal.Signals(number).name
            output.complain(
                f"gsjax: {name}: stopping after this step; Ctrl-C, over a second later, "
                "exits without saving"
            )
        elif impatient and callable(former[number]):
            former[number](number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handling(note) as former:
        try:
            yield
        finally:
            if request.signal:
                _hold_off(former)


@contextlib.contextmanager
def _handling(handler: Any) -> Iterator[dict[int, Any]]:
    """Installs a handler; yields the former ones."""
    former: dict[int, Any] = {number: signal.signal(number, handler) for number in handled()}
    try:
        yield former
    finally:
        for number, before in former.items():
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, before)


def _hold_off(former: dict[int, Any]) -> None:
    """Ignores, while this program ends by a signal, all but Ctrl-C: a scheduler repeats itself."""
    for number, before in former.items():
        if before is _leave_at_once and number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)


def _leave_at_once(number: int, frame: Any) -> NoReturn:
    _leave(number, "stopped by {}; the same command starts again")


def _watch(pipe: int) -> None:
    """Waits for signals: the pipe carries the number of each as a byte, and closes at the end."""
    patience = _Patience()
    while numbers := os.read(pipe, 64):
        for number in numbers:
            if number not in SIGNALS:
                continue
            handler = signal.getsignal(number)
            if handler is _leave_at_once:
                _leave_at_once(number, None)
            if callable(handler) and patience.ends(number):
                _leave(number, "left at once by {}")


def _leave(number: int, line: str) -> NoReturn:
    with _LEAVING:  # for good: the main thread and the watching one may both come here
        output.complain(f"gsjax: {line.format(signal.Signals(number).name)}")
        os._exit(128 + number)

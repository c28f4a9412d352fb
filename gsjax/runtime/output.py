"""Standard streams that cannot make a run fail.

A closed stream, a full disk, a pipe without a reader, a closed terminal or a character that cannot
be encoded loses output, but never stops the run.
"""

import contextlib
import io
import os
import select
import sys
from typing import IO, Any


class _Output(io.FileIO):
    """A file descriptor that accepts every write; what cannot be written is dropped."""

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        with contextlib.suppress(OSError):
            while rest:
                written = super().write(rest)
                if written is None:  # another program has made a shared terminal non-blocking
                    select.select([], [self.fileno()], [])
                rest = rest[written or 0 :]
        return size


def guard() -> None:
    """Makes the standard streams safe; call it first in a program.

    Opens /dev/null for closed descriptors among 0, 1 and 2; otherwise the next file opened would
    receive printed output. Streams that the caller replaced (a notebook, a test) are kept.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _guarded(sys.stdout, 1)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _guarded(sys.stderr, 2)


def _guarded(former: IO[str] | None, number: int) -> io.TextIOWrapper:
    encoding, unbuffered, by_line = None, False, number == 2
    if isinstance(former, io.TextIOWrapper):
        with contextlib.suppress(OSError):
            former.flush()
        encoding, unbuffered = former.encoding, former.write_through
        by_line = former.line_buffering
    raw = _Output(number, "w", closefd=False)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding,
        "backslashreplace",
        line_buffering=by_line,
        write_through=unbuffered,
    )


def escaped(text: str) -> str:
    """Escapes line breaks and the characters that would control a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    try:
        return sys.stdout is not None and sys.stdout.isatty()
    except ValueError:  # closed
        return False


def print_stderr(line: str) -> None:
    """Writes a line, escaped, to standard error if possible.

    Bypasses Python's buffer: a signal may arrive in the middle of a print, which is not reentrant.
    Waits up to a second for a stopped terminal (Ctrl-S).
    """
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError):
        if select.select([], [2], [], 1.0)[1]:
            os.write(2, f"{escaped(line)}\n".encode(encoding, "backslashreplace"))

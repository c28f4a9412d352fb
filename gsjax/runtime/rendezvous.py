"""How the processes of a run find each other before JAX connects them.

JAX silently waits for processes that never show up and then aborts. So the processes first meet
over plain TCP on the coordinator's port: process 0 listens, all connect and identify themselves,
and once everyone has connected, process 0 releases them. Until then it can say who is missing, and
any process can be interrupted.
"""

import contextlib
import errno
import json
import selectors
import socket
import time
from typing import Any

from gsjax.errors import UserError
from gsjax.runtime import output
from gsjax.runtime.cluster import SINGLE, START_SECONDS, Member

_BUSY_SECONDS = 5.0  # a previous run may not have released the port yet
_NAME_SECONDS = 10.0  # a cluster's DNS may not know a new machine yet
_FIRST_LINE = 2.0  # seconds of silence; starts are rarely simultaneous
_FIRST_LINE_OF_OTHERS = 10.0  # process 0 names the missing ones sooner
_NEXT_LINE = 30.0
_MAX_MESSAGE = 4096  # bytes


class LostFirst(ConnectionError):
    """Process 0 exited while the others were still gathering."""


def meet(member: Member, seconds: float = START_SECONDS) -> None:
    """Returns once all processes of the run have connected.

    Args:
      member: this process.
      seconds: how long to wait for the others.

    Raises:
      UserError: not all connected within `seconds`, the address is unusable, or another process
        has the same process id or a different number of processes.
      LostFirst: process 0 has exited.
    """
    if member.process_id == 0:
        with _listen(member) as listener:
            _Gathering(member, listener).run(seconds)
    else:
        _join(member, time.monotonic() + seconds)


def _listen(member: Member) -> socket.socket:
    deadline = time.monotonic() + _BUSY_SECONDS
    host, port = member.endpoint
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    while True:
        try:
            return socket.create_server(
                ("", port), family=family, dualstack_ipv6=dual, backlog=max(member.num_processes, 8)
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                reason = error.strerror or str(error)
                raise UserError(
                    f"process 0 cannot listen on port {port} ({member.address}, {member.origin}): "
                    f"{reason.lower()}; choose another port, or stop what uses it"
                ) from error
        time.sleep(0.2)


class _Gathering:
    """Process 0's side: who has connected, and how to answer each."""

    def __init__(self, member: Member, listener: socket.socket) -> None:
        self._member, self._listener = member, listener
        self._selector = selectors.DefaultSelector()
        self._unread: dict[socket.socket, bytes] = {}
        self._arrived: dict[int, socket.socket] = {}

    def run(self, seconds: float) -> None:
        """Waits for all processes, then releases them."""
        began = time.monotonic()
        next_line = began + _FIRST_LINE
        self._selector.register(self._listener, selectors.EVENT_READ)
        try:
            # Connects as the others do, which verifies that the address is this machine's.
            with _connected_to_itself(self._member) as own:
                own.setblocking(False)
                while missing := self._missing():
                    now = time.monotonic()
                    if now > began + seconds:
                        text = self._timeout_message(missing, seconds)
                        self._send_all({"refused": text})
                        raise UserError(text)
                    if now > next_line:
                        self._report_missing(missing, began + seconds - now)
                        next_line = now + _NEXT_LINE
                    for key, _ in self._selector.select(0.5):
                        self._receive(key.fileobj)
                    _check_answer(own)
                self._send_all({"go": True})
        finally:
            for connection in self._unread:
                connection.close()
            self._selector.close()

    def _missing(self) -> list[int]:
        return [i for i in range(self._member.num_processes) if i not in self._arrived]

    def _report_missing(self, missing: list[int], left: float) -> None:
        output.print_stderr(
            f"gsjax: waiting for {_names(missing)} of {self._member.num_processes} at "
            f"{self._member.address} ({self._member.origin}) for {left:.0f} s more; {SINGLE}"
        )

    def _timeout_message(self, missing: list[int], seconds: float) -> str:
        return (
            f"{_names(missing)} of {self._member.num_processes} did not connect to "
            f"{self._member.address} within {seconds:.0f} s ({self._member.origin}); check that "
            f"they are running and can reach it; {SINGLE}"
        )

    def _receive(self, source: Any) -> None:
        if source is self._listener:
            with contextlib.suppress(OSError):  # the other side connects again
                self._accept()
            return
        try:
            received = source.recv(_MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        text = self._unread[source] + received
        if not received or len(text) > _MAX_MESSAGE:
            self._drop(source)
            return
        self._unread[source] = text
        if text.endswith(b"\n"):
            self._unread[source] = b""
            self._answer(source, text)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._unread[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ)

    def _answer(self, source: socket.socket, text: bytes) -> None:
        try:
            hello = json.loads(text)
            number, count, run = int(hello["process"]), int(hello["of"]), str(hello["run"])
        except (ValueError, KeyError, TypeError):
            self._drop(source)  # something else that probed the port
            return
        address = self._member.address
        if run != self._member.run:
            refusal = f"{address} is used by another run ({self._member.run}): choose another port"
        elif count != self._member.num_processes:
            refusal = (
                f"process {number} was started as one of {count} processes, but process 0 at "
                f"{address} as one of {self._member.num_processes}"
            )
        elif number in self._arrived:
            refusal = (
                f"there is already a process {number} at {address}: each needs its own --process_id"
            )
        else:
            self._arrived[number] = source
            _send(source, {"here": True})
            return
        _send(source, {"refused": refusal})
        if number:  # a process 0, this one or another, reports its refusal itself
            output.print_stderr(f"gsjax: refused a process: {refusal}")
        self._drop(source)

    def _drop(self, source: socket.socket) -> None:
        self._selector.unregister(source)
        del self._unread[source]
        self._arrived = {i: other for i, other in self._arrived.items() if other is not source}
        source.close()

    def _send_all(self, message: dict[str, Any]) -> None:
        for connection in self._arrived.values():
            _send(connection, message)


def _names(missing: list[int]) -> str:
    shown = [str(i) for i in missing[:8]]
    if len(missing) > 8:
        shown.append(f"{len(missing) - 8} more")
    if len(shown) == 1:
        return f"process {shown[0]}"
    return f"processes {', '.join(shown[:-1])} and {shown[-1]}"


def _hello(member: Member) -> dict[str, Any]:
    return {"process": member.process_id, "of": member.num_processes, "run": member.run}


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a lost connection is noticed when reading
        connection.sendall(json.dumps(message).encode() + b"\n")


def _connected_to_itself(member: Member) -> socket.socket:
    end = time.monotonic() + _NAME_SECONDS
    while True:
        try:
            connection = socket.create_connection(member.endpoint, timeout=10)
            break
        except OSError as error:
            if not isinstance(error, socket.gaierror) or time.monotonic() > end:
                raise UserError(
                    f"process 0 cannot reach itself at {member.address} ({member.origin}): "
                    f"{_reason(error)}; the address must be this machine's"
                ) from error
        time.sleep(0.5)
    _send(connection, _hello(member))
    return connection


def _check_answer(own: socket.socket) -> None:
    """Raises UserError if a different process 0 listens at this one's address and refused it."""
    with contextlib.suppress(BlockingIOError, ConnectionError, ValueError):
        for line in own.recv(_MAX_MESSAGE).splitlines():
            if "refused" in (answer := json.loads(line)):
                raise UserError(answer["refused"])


def _join(member: Member, deadline: float) -> None:
    """The other processes' side."""
    began = time.monotonic()
    next_line = began + _FIRST_LINE_OF_OTHERS
    while True:
        try:
            with socket.create_connection(member.endpoint, timeout=5) as connection:
                _send(connection, _hello(member))
                if _wait_for_go(connection, member, deadline):
                    return
            reason = "something other than gsjax is listening there"
        except LostFirst:
            raise
        except OSError as error:
            reason = _reason(error)
        now = time.monotonic()
        here = f"process {member.process_id} of {member.num_processes}"
        there = f"process 0 at {member.address} ({member.origin})"
        if now > deadline:
            raise UserError(f"{here} cannot reach {there}: {reason}; {SINGLE}")
        if now > next_line:
            output.print_stderr(f"gsjax: {here} is trying to reach {there} ({reason}); {SINGLE}")
            next_line = now + _NEXT_LINE
        time.sleep(0.3)


def _wait_for_go(connection: socket.socket, member: Member, deadline: float) -> bool:
    """Whether process 0 released this one; False if something else answers there."""
    connection.settimeout(1.0)
    text, known = b"", False
    while True:
        try:
            received = connection.recv(_MAX_MESSAGE)
        except TimeoutError:
            if time.monotonic() < deadline:
                continue
            received = b""
        except OSError:
            received = b""
        if not received:
            if known:
                raise LostFirst(f"process 0 at {member.address} exited before all had connected")
            return False
        *lines, text = (text + received).split(b"\n")
        for line in lines:
            try:
                answer = json.loads(line)
                if "here" in answer:  # from now on process 0 keeps the time
                    known, deadline = True, time.monotonic() + START_SECONDS + 30
                if "refused" in answer:
                    raise UserError(str(answer["refused"]))
                if "go" in answer:
                    return True
            except (ValueError, TypeError):
                return False


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the host name cannot be resolved"
    if isinstance(error, TimeoutError):
        return "no answer"
    return (error.strerror or str(error)).lower()

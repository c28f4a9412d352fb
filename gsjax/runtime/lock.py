"""Locks: one training run per work directory, and one writer per results file.

On a local disk the lock is the kernel's (`flock`), which is released however its process ends.
Elsewhere no such lock is reliable: there the run rewrites a file every 20 s, and a file unchanged
for 120 s belongs to a dead process. Clocks of different machines are never compared.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import platform
import random
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from etils import epath

from gsjax.errors import UserError
from gsjax.runtime import files, metrics, output, parallel

_PERIOD, _STALE = 20.0, 120.0  # seconds
_FAST_PERIOD, _FAST_STALE, _PATIENCE = 5.0, 30.0, 120.0  # seconds
_MOUNTS = pathlib.Path("/proc/self/mounts")
_NETWORK = tuple(
    "9p afs beegfs ceph cifs fuse gfs gluster gpfs lustre ncp nfs ocfs orangefs pvfs smb vboxsf "
    "virtiofs wekafs".split()
)  # prefixes of network file system types
# Keeps running while the machine is suspended, if the system has such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class InUse(UserError):
    """Another process holds the lock."""


@contextlib.contextmanager
def held(folder: epath.Path, name: str) -> Iterator[None]:
    """Creates the folder and holds `<folder>/<name>.lock`; the primary host does so for all.

    Raises:
      UserError: another run holds the lock (the message says which), or the folder is not writable.
    """
    file = folder / f"{name}.lock"
    with contextlib.ExitStack() as stack:

        def take() -> None:
            with files.write_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(beating(file) if is_shared(folder) else flocked(file))

        parallel.from_primary(take)
        yield


@contextlib.contextmanager
def exclusive(file: epath.Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Holds `<file>.lock` while the file is read, changed and written.

    Args:
      file: the file to protect; its folder must exist.
      patience: seconds to wait for the current holder.

    Raises:
      UserError: the lock is still held after that time, or the folder is not writable.
    """
    own = file.with_name(f"{file.name}.lock")
    shared = is_shared(file.parent)
    end = _now() + patience
    with contextlib.ExitStack() as stack:
        while True:
            try:
                holding = (
                    beating(own, _FAST_PERIOD, _FAST_STALE, quiet=True) if shared else flocked(own)
                )
                stack.enter_context(holding)
                break
            except InUse:
                if _now() > end:
                    raise
            time.sleep(random.uniform(0.01, 0.05))
        yield


@contextlib.contextmanager
def flocked(file: epath.Path) -> Iterator[None]:
    """Holds a lock file with the kernel's `flock`."""
    with files.write_errors(file):
        descriptor = _flock(file)
    try:
        with files.write_errors(file):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(_about()).encode())
        yield
    finally:
        file.unlink(missing_ok=True)  # while still locked: whoever has it open looks again
        os.close(descriptor)


def _flock(file: epath.Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            content = os.read(descriptor, 1 << 16)
            os.close(descriptor)
            raise _refusal(file, content) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        os.close(descriptor)  # the holder has just removed the file


@contextlib.contextmanager
def beating(
    file: epath.Path, period: float = _PERIOD, stale: float = _STALE, quiet: bool = False
) -> Iterator[None]:
    """Holds a lock file by rewriting it every `period` seconds.

    If the process was suspended for so long that another took over, it exits with status 2.

    Args:
      file: the lock file.
      period: seconds between two beats.
      stale: seconds after which an unchanged file belongs to a dead process.
      quiet: whether to wait for that without printing a line.
    """
    name = uuid.uuid4().hex
    beats, beaten = 0, 0.0
    ended = threading.Event()

    def beat() -> None:
        nonlocal beats, beaten
        beats += 1
        files.write_text(file, json.dumps({**_about(), "name": name, "beats": beats}))
        beaten = _now()

    def is_ours(content: bytes | None) -> bool:
        if content is None:  # another process may have taken it and ended since
            return _now() - beaten < stale
        return name.encode() in content

    def keep_beating() -> None:
        while not ended.wait(period):
            with contextlib.suppress(*files.error_types()):  # storage may be briefly unavailable
                content = _read(file)
                if not is_ours(content):
                    output.print_stderr(f"gsjax: error: {_refusal(file, content)}")
                    os._exit(2)
                beat()

    with files.write_errors(file):
        dead = _watch(file, period, stale, quiet)
        if not files.is_remote(file):
            _create(file, dead)
        beat()
        time.sleep(period / 10)  # if two came at the same time, the later one overwrote it
        content = _read(file)
        if not is_ours(content):
            raise _refusal(file, content)
    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(*files.error_types()):
            file.unlink(missing_ok=True)


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _create(file: epath.Path, dead: bytes | None) -> None:
    """Creates the lock file exclusively: of several processes, only one succeeds.

    Args:
      file: the lock file.
      dead: content of a dead process's lock file to remove first; None if there is none.

    Raises:
      InUse: another process was faster.
    """
    if dead is not None and _read(file) == dead:
        file.unlink(missing_ok=True)
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        raise _refusal(file, _read(file)) from None


def _watch(file: epath.Path, period: float, stale: float, quiet: bool) -> bytes | None:
    """Returns None once the file is gone, or its content if unchanged for `stale` seconds.

    Raises:
      InUse: the file changes, so its holder is alive.
    """
    first = _read(file)
    if first is None:
        return None
    if not quiet:
        metrics.log(f"{file} exists: waiting up to {stale:.0f} s to see whether its owner is alive")
    end = _now() + stale
    while _now() < end:
        time.sleep(period / 10)
        content = _read(file)
        if content is None:
            return None
        if content != first:
            raise _refusal(file, content)
    return first


def _read(file: epath.Path) -> bytes | None:
    try:
        return file.read_bytes() if file.exists() else None
    except FileNotFoundError:
        return None


def is_shared(folder: epath.Path) -> bool:
    """Whether other machines may see the folder: a bucket or a network file system."""
    if files.is_remote(folder):
        return True
    return _file_system(folder).startswith(_NETWORK)


def _file_system(folder: epath.Path) -> str:
    """Returns the file system type of an existing folder; "" if the system does not report it."""
    if not _MOUNTS.exists():
        return ""
    kinds = {}
    for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
        _, point, kind, *_ = line.split()
        # Spaces appear as \040. Of several mounts on one point, the last counts.
        kinds[re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), point)] = kind
    path = pathlib.Path(folder).resolve()
    return next((kinds[str(p)] for p in (path, *path.parents) if str(p) in kinds), "")


def _about() -> dict[str, str | int]:
    return {
        "host": platform.node(),
        "process": os.getpid(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(sys.argv),
    }


def _refusal(file: epath.Path, content: bytes | None) -> InUse:
    try:
        about = json.loads(content or b"")
        holder = "process {process} on {host} since {started}: {command}".format_map(about)
    except (ValueError, KeyError, TypeError, AttributeError):  # the holder has not written it yet
        holder = "unknown"
    return InUse(
        f"{files.shown(file.parent)} is in use by another process ({holder}): wait for it to end, "
        "or choose another --workdir"
    )

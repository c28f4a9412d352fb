"""One training in a work directory at a time, and one writer of a results file.

On a local disk the lock is the kernel's (`flock`), which ends with its process however that ends.
Elsewhere nothing of that kind can be relied on: there the training rewrites a file every 20 s, and
one that has not changed for 120 s belongs to a dead process. No two clocks are compared.
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
_TURN_PERIOD, _TURN_STALE, _TURN_PATIENCE = 5.0, 30.0, 120.0  # seconds
_MOUNTS = pathlib.Path("/proc/self/mounts")
_NETWORK = tuple(
    "9p afs beegfs ceph cifs fuse gfs gluster gpfs lustre ncp nfs ocfs orangefs pvfs smb vboxsf "
    "virtiofs wekafs".split()
)  # how the kinds of such mounts begin
# Goes on while the machine is suspended, where the system has such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class InUse(UserError):
    """Another process holds the lock."""


@contextlib.contextmanager
def held(folder: epath.Path, name: str) -> Iterator[None]:
    """Holds `<folder>/<name>.lock`, in the first process for all; makes the folder.

    Raises:
      UserError: another training holds it, which is named; or the folder cannot be written.
    """
    file = folder / f"{name}.lock"
    with contextlib.ExitStack() as stack:

        def take() -> None:
            with files.told(folder):
                folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(beating(file) if is_shared(folder) else flocked(file))

        parallel.from_primary(take)
        yield


@contextlib.contextmanager
def turn(file: epath.Path, patience: float = _TURN_PATIENCE) -> Iterator[None]:
    """Holds `<file>.lock` while the file is read, changed and written.

    Args:
      file: in a folder that exists.
      patience: seconds to wait for the current holder.

    Raises:
      UserError: others still hold it after that time, or the folder cannot be written.
    """
    own = file.with_name(f"{file.name}.lock")
    shared = is_shared(file.parent)
    end = _now() + patience
    with contextlib.ExitStack() as stack:
        while True:
            try:
                holding = (
                    beating(own, _TURN_PERIOD, _TURN_STALE, quiet=True) if shared else flocked(own)
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
    """Holds a file by the kernel's lock."""
    with files.told(file):
        descriptor = _flock(file)
    try:
        with files.told(file):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(_about()).encode())
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: whoever opened it looks once more
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
        os.close(descriptor)  # of a file that its holder has just removed


@contextlib.contextmanager
def beating(
    file: epath.Path, period: float = _PERIOD, stale: float = _STALE, quiet: bool = False
) -> Iterator[None]:
    """Holds a file by rewriting it every `period` seconds.

    A process that was suspended so long that another took its place ends at once, with status 2.

    Args:
      file: the lock.
      period: seconds between two beats.
      stale: seconds after which a file that does not change belongs to a dead process.
      quiet: whether to say nothing when it waits for that.
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
        if content is None:  # another may have taken it meanwhile, and have ended
            return _now() - beaten < stale
        return name.encode() in content

    def keep_beating() -> None:
        while not ended.wait(period):
            with contextlib.suppress(*files.error_types()):  # storage that is away for a while
                content = _read(file)
                if not is_ours(content):
                    output.complain(f"gsjax: error: {_refusal(file, content)}")
                    os._exit(2)
                beat()

    with files.told(file):
        dead = _watch(file, period, stale, quiet)
        if not files.is_remote(file):
            _create(file, dead)
        beat()
        time.sleep(period / 10)  # where two have come at once, the later one has overwritten it
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
    """Creates the file, of which only one of several processes is capable.

    Args:
      file: the lock.
      dead: content of a dead process's lock, to be removed first; None if there is none.

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
    """Returns None when the file is gone, and its content if that has long been the same.

    Raises:
      InUse: it changes.
    """
    first = _read(file)
    if first is None:
        return None
    if not quiet:
        metrics.say(f"{file} is there: {stale:.0f} s show whether its training is alive")
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
    """Whether other machines may see the folder too: a bucket, or a mount of such a kind."""
    if files.is_remote(folder):
        return True
    return _file_system(folder).startswith(_NETWORK)


def _file_system(folder: epath.Path) -> str:
    """The kind of the mount that an existing folder lies on; "" where the system does not tell."""
    if not _MOUNTS.exists():
        return ""
    kinds = {}
    for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
        _, point, kind, *_ = line.split()
        # A space is \040 there. Of several mounts on a point the last one counts.
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
    except (ValueError, KeyError, TypeError, AttributeError):  # it has not said so yet
        holder = "unknown"
    return InUse(
        f"{files.shown(file.parent)} is in use by another process ({holder}): wait for its end, or "
        "choose another --workdir"
    )

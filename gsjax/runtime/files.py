"""Files in a work directory: paths, atomic writes, one-line errors."""

import contextlib
import errno
import os
import sys
import uuid
from collections.abc import Iterator

from etils import epath

from gsjax.errors import UserError
from gsjax.runtime import output


def error_types(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Returns the error types of file I/O: Python's, TensorFlow's (for buckets) and `others`.

    Call it in the except clause, as in `except error_types():`. TensorFlow takes seconds to import,
    and cannot raise anything until something has imported it.
    """
    tensorflow = sys.modules.get("tensorflow")
    return (OSError, *([tensorflow.errors.OpError] if tensorflow else []), *others)


def shown(path: str | os.PathLike) -> str:
    """Formats a path for messages, escaping control characters and bytes that are not UTF-8."""
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # not a file name that this locale can encode
        text = ascii(os.fspath(path))[1:-1]
    return output.escaped(text)


def absolute(path: str) -> epath.Path:
    """Makes a local path absolute; returns gs://... unchanged.

    Raises:
      UserError: it begins with ~ and there is no home folder, it is relative and the current folder
        is gone, or it is an address that is no bucket.
    """
    try:
        expanded = epath.Path(path).expanduser()
    except KeyError as error:
        raise UserError(
            f"{shown(path)} is neither a local path nor a bucket; download it first"
        ) from error
    if expanded.parts[:1] == ("~",):
        raise UserError(f"{shown(path)}: there is no home folder; give the path without ~")
    if not is_remote(expanded):
        try:
            return expanded.absolute()
        except FileNotFoundError as error:
            raise UserError(f"{shown(path)}: the current folder no longer exists") from error
    # epath accesses buckets through TensorFlow.
    from gsjax.runtime import tensorflow_setup  # noqa: F401

    return expanded


def is_remote(path: epath.Path) -> bool:
    """Whether a path is in a bucket, such as gs://..."""
    return "://" in path.as_posix()


def with_suffix(folder: epath.Path, suffix: str) -> list[epath.Path]:
    """Returns a folder's files whose names end in `suffix`, sorted; empty if there is no folder.

    `folder.glob` would treat brackets in the folder's own name as a pattern.
    """
    found = list(folder.iterdir()) if folder.exists() else []
    return sorted(file for file in found if file.name.endswith(suffix))


def write_text(file: epath.Path, text: str) -> None:
    """Writes a file atomically, even if two processes write it at the same time."""
    write_bytes(file, text.encode())


def write_bytes(file: epath.Path, content: bytes) -> None:
    """Like `write_text`, for bytes."""
    new = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.new")
    with replacing(file, new):
        new.write_bytes(content)


def check_writable(folder: epath.Path) -> None:
    """Creates the folder, then writes and removes a small file in it.

    Raises:
      UserError: the folder is not writable.
    """
    probe = folder / f"{uuid.uuid4().hex[:8]}.new"
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()


@contextlib.contextmanager
def replacing(file: epath.Path, new: epath.Path) -> Iterator[None]:
    """Replaces `file` with `new`, which the body writes; deletes `new` if the body fails."""
    try:
        yield
        sync(new)
        new.replace(file)
    except BaseException:
        with contextlib.suppress(*error_types()):
            new.unlink(missing_ok=True)
        raise
    sync(file.parent)


def sync(path: epath.Path) -> None:
    """Syncs a file, or a folder's entries, to disk; does nothing in a bucket."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def write_errors(path: epath.Path) -> Iterator[None]:
    """Turns errors from writing files into a one-line UserError that names the path."""
    try:
        yield
    except error_types() as error:
        raise UserError(f"{shown(path)} cannot be written: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Describes a file error in one line, without the path."""
    if isinstance(error, FileExistsError):
        return "a file or a broken link has that name"
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
    return text.split("\n")[0]

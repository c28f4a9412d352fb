"""Files of a work directory: paths, writing whole files, errors in one line."""

import contextlib
import errno
import os
import sys
import uuid
from collections.abc import Iterator

from etils import epath

from gsjax.errors import UserError


def error_types(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """The errors of reading and writing files: Python's, TensorFlow's for buckets, and others.

    To be called when an error is caught, as in `except error_types():`.
    TensorFlow takes seconds to import, and raises nothing as long as nobody has imported it.
    """
    tensorflow = sys.modules.get("tensorflow")
    return (OSError, *([tensorflow.errors.OpError] if tensorflow else []), *others)


def shown(path: str | os.PathLike) -> str:
    """A path as a message shows it: bytes that are not UTF-8 and control characters escaped."""
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # no name that this locale could give to a file
        text = ascii(os.fspath(path))[1:-1]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def absolute(path: str) -> epath.Path:
    """Returns a local path made absolute, and gs://... as it is.

    Raises:
      UserError: it begins with ~, and there is no home folder; or it is relative to a current
        folder that is gone.
    """
    expanded = epath.Path(path).expanduser()
    if expanded.parts[:1] == ("~",):
        raise UserError(f"{shown(path)}: there is no home folder, give the path without ~")
    if not is_remote(expanded):
        try:
            return expanded.absolute()
        except FileNotFoundError as error:
            raise UserError(f"{shown(path)}: the current folder is gone") from error
    # Through it epath reads buckets.
    from gsjax.runtime import tensorflow_setup  # noqa: F401

    return expanded


def is_remote(path: epath.Path) -> bool:
    """Whether it lies in a bucket, as gs://... does."""
    return "://" in path.as_posix()


def with_suffix(folder: epath.Path, suffix: str) -> list[epath.Path]:
    """The sorted files of a folder whose names end so; none where there is no folder.

    `folder.glob` would take brackets in the folder's own name for a pattern.
    """
    found = list(folder.iterdir()) if folder.exists() else []
    return sorted(file for file in found if file.name.endswith(suffix))


def write_text(file: epath.Path, text: str) -> None:
    """Writes a file that is there whole, or as it was before, even if two write it together."""
    write_bytes(file, text.encode())


def write_bytes(file: epath.Path, content: bytes) -> None:
    """Writes a file as `write_text` does."""
    new = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.new")
    with taking_the_place_of(file, new):
        new.write_bytes(content)


def check_writable(folder: epath.Path) -> None:
    """Makes the folder, and writes and removes a small file in it.

    Raises:
      UserError: it cannot be written.
    """
    probe = folder / f"{uuid.uuid4().hex[:8]}.new"
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()


@contextlib.contextmanager
def taking_the_place_of(file: epath.Path, new: epath.Path) -> Iterator[None]:
    """Lets `new`, which is written within, take the file's place at the end, or go."""
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
    """Waits until a file or the entries of a folder have reached the disk; a bucket needs none."""
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
def told(path: epath.Path) -> Iterator[None]:
    """Turns the errors of writing files into one line that names the path."""
    try:
        yield
    except error_types() as error:
        raise UserError(f"{shown(path)} cannot be written: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What went wrong with a file, without its path, in one line."""
    if isinstance(error, FileExistsError):
        return "a file, or a link that leads nowhere, has that name"
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
    return text.split("\n")[0]

"""The state of a training on the disk, by Orbax."""

import glob
import os
import re
import sys
from collections.abc import Iterator
from logging import getLogger
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from gsjax.errors import UserError
from gsjax.runtime import files, parallel


class _LiteralPath(type(epath.Path())):  # type: ignore[misc]
    """A path whose own characters never count as a pattern.

    Orbax finds what each process has written with `glob`, and epath would take brackets and
    asterisks in the names of the parent folders for a part of the pattern.
    """

    def glob(self, pattern: str) -> Iterator[epath.Path]:
        if files.is_remote(self):
            yield from super().glob(pattern)
            return
        for found in glob.iglob(os.path.join(glob.escape(os.fspath(self)), pattern)):
            yield self._new(found)


def check_path(folder: epath.Path) -> None:
    """Checks that checkpoints can be kept below a folder of this name.

    Raises:
      UserError: TensorStore, which writes the arrays, cannot use the name or takes it for another.
    """
    name = os.fspath(folder)
    if "\\" in name:
        fault = "a backslash"
    elif "gs:/" in f"{name}/" and not files.is_remote(folder):
        fault = "a folder called gs:"
    elif not _is_unicode(name):
        fault = "bytes that are not valid UTF-8"
    else:
        return
    raise UserError(
        f"checkpoints cannot be kept in {files.shown(folder)}, whose path contains {fault}: rename "
        "the folder, or choose another --workdir"
    )


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def write(path: epath.Path, state: Any) -> None:
    """Writes a state into `checkpoints/<step>` and checks it; all hosts call it together.

    Raises:
      UserError: the disk is full or fails, or what was written cannot be restored.
    """
    check_path(path)
    # Orbax's threads tell a full disk in many words, some of them later.
    verbosity, hook = logging.get_verbosity(), sys.unraisablehook
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _all_but_closed_loops
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(_LiteralPath(path / "default"), args=ocp.args.StandardSave(state))
        sys.unraisablehook = hook
    except Exception as error:
        if parallel.is_lost_peer(error):
            raise
        getLogger("asyncio").disabled = True
        raise UserError(
            f"{path} cannot be written: {_reason(error)}; the same command goes on from the last "
            "checkpoint"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if parallel.is_primary():
        try:
            _check_data(path)
            _compare(path, _found(path), state)
        except UserError as error:
            raise UserError(
                f"{files.shown(path)} was written, but cannot be restored: {error}"
            ) from error


def read(path: epath.Path, target: Any, partial: bool = False) -> Any:
    """Returns the state in `checkpoints/<step>`, or a part of it.

    Args:
      path: of the checkpoint.
      target: shapes, types and shardings of the state; of a part, in nested dictionaries.
      partial: whether the checkpoint may hold more.

    Raises:
      UserError: it is no checkpoint, one of another model, or cannot be read.
    """
    check_path(path)
    found = _found(path)
    if partial:
        wanted = _leaves(target)
        found = {name: leaf for name, leaf in found.items() if name in wanted}
    _compare(path, found, target)
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    arguments = ocp.args.PyTreeRestore(target, restore_args, partial_restore=partial)
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(_LiteralPath(path / "default"), args=arguments)
        except Exception as error:  # Orbax raises that very class
            if parallel.is_lost_peer(error):
                raise
            raise UserError(f"{path} cannot be restored: {_reason(error)}") from error


def _check_data(path: epath.Path) -> None:
    """Checks that what each process has written holds data.

    Raises:
      UserError: files of arrays are missing.
    """
    parts = list(_LiteralPath(path / "default").glob("ocdbt.process_*"))
    for part in parts or [path / "default"]:
        data = part / "d"
        if not data.exists() or not any(data.iterdir()):
            raise UserError(f"{files.shown(data)} holds no arrays")


def _found(path: epath.Path) -> dict[str, str]:
    """Reads what a checkpoint says of its arrays, as `_leaves` gives it.

    Raises:
      UserError: its metadata or the index of its arrays is missing or damaged.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            metadata = checkpointer.metadata(_LiteralPath(path / "default"))
            return _leaves(metadata.item_metadata.tree)
        except (ValueError, OSError, AttributeError) as error:
            raise UserError(
                f"{files.shown(path)} is no checkpoint of gsjax, or a damaged one"
            ) from error


def _compare(path: epath.Path, found: dict[str, str], target: Any) -> None:
    """Compares a checkpoint's arrays with those wanted: Orbax casts another type silently.

    Raises:
      UserError: they differ.
    """
    wanted = _leaves(target)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{files.shown(path)} is no checkpoint of this model: {name} is "
                f"{found.get(name, 'missing')}, not {wanted.get(name, 'there')}"
            )


def _leaves(tree: Any) -> dict[str, str]:
    """Returns {path of a leaf: its type and shape}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _reason(error: BaseException) -> str:
    """What an error of Orbax says, in a line: that of a file as everywhere, others with type."""
    if isinstance(error, files.error_types()):
        return files.reason(error)
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number:
        return os.strerror(int(number[1]))
    if error.__cause__:  # around it Orbax tells the layout of its store
        return _reason(error.__cause__)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _all_but_closed_loops(unraisable: Any) -> None:
    """Prints what threads cannot raise, but for writes that end after the first one has failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)

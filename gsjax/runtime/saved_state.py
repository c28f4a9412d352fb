"""Saves and restores the training state with Orbax."""

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
    """A path whose own characters are never treated as a pattern.

    Orbax finds what each process has written with `glob`, and epath would treat brackets and
    asterisks in the names of parent folders as part of the pattern.
    """

    def glob(self, pattern: str) -> Iterator[epath.Path]:
        if files.is_remote(self):
            yield from super().glob(pattern)
            return
        for found in glob.iglob(os.path.join(glob.escape(os.fspath(self)), pattern)):
            yield self._new(found)


def check_path(folder: epath.Path) -> None:
    """Checks that checkpoints can be stored under this folder.

    Raises:
      UserError: TensorStore, which writes the arrays, cannot use the path or misreads it.
    """
    name = os.fspath(folder)
    if "\\" in name:
        fault = "a backslash"
    elif "gs:/" in f"{name}/" and not files.is_remote(folder):
        fault = "a folder named gs:"
    elif not _is_unicode(name):
        fault = "bytes that are not valid UTF-8"
    else:
        return
    raise UserError(
        f"checkpoints cannot be stored in {files.shown(folder)}: its path contains {fault}; rename "
        "the folder, or choose another --workdir"
    )


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _one_copy(leaf: Any) -> Any:
    """One device's copy of a replicated array.

    Orbax has every device write a part of it, for which it compiles a program per shape; within a
    process, that takes longer than it saves.
    """
    replicated = isinstance(leaf, jax.Array) and leaf.is_fully_replicated
    return leaf.addressable_data(0) if replicated and jax.process_count() == 1 else leaf


def write(path: epath.Path, state: Any) -> None:
    """Writes a state to `checkpoints/<step>` and verifies it; every host must call it.

    Raises:
      UserError: the disk is full or fails, or what was written cannot be restored.
    """
    check_path(path)
    # Orbax's threads report a full disk at length, some of them later.
    verbosity, hook = logging.get_verbosity(), sys.unraisablehook
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _ignore_closed_loops
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            arguments = ocp.args.StandardSave(jax.tree.map(_one_copy, state))
            checkpointer.save(_LiteralPath(path / "default"), args=arguments)
        sys.unraisablehook = hook
    except Exception as error:
        if parallel.is_lost_peer(error):
            raise
        getLogger("asyncio").disabled = True
        raise UserError(
            f"{path} cannot be written: {_reason(error)}; rerun the same command to resume from "
            "the last checkpoint"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if parallel.is_primary():
        try:
            _check_data(path)
            _compare(path, _stored_leaves(path), state)
        except UserError as error:
            raise UserError(
                f"{files.shown(path)} was written, but cannot be restored: {error}"
            ) from error


def read(path: epath.Path, target: Any, partial: bool = False) -> Any:
    """Returns the state in `checkpoints/<step>`, or a part of it.

    Args:
      path: the checkpoint.
      target: shapes, types and shardings of the state; for a part, in nested dictionaries.
      partial: whether the checkpoint may hold more than `target`.

    Raises:
      UserError: it is not a checkpoint, belongs to another model or cannot be read.
    """
    check_path(path)
    found = _stored_leaves(path)
    if partial:
        wanted = _leaves(target)
        found = {name: leaf for name, leaf in found.items() if name in wanted}
    _compare(path, found, target)
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    arguments = ocp.args.PyTreeRestore(target, restore_args, partial_restore=partial)
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(_LiteralPath(path / "default"), args=arguments)
        except Exception as error:  # Orbax raises Exception itself
            if parallel.is_lost_peer(error):
                raise
            raise UserError(f"{path} cannot be restored: {_reason(error)}") from error


def _check_data(path: epath.Path) -> None:
    """Checks that the part written by each process holds data.

    Raises:
      UserError: array files are missing.
    """
    parts = list(_LiteralPath(path / "default").glob("ocdbt.process_*"))
    for part in parts or [path / "default"]:
        data = part / "d"
        if not data.exists() or not any(data.iterdir()):
            raise UserError(f"{files.shown(data)} contains no arrays")


def _stored_leaves(path: epath.Path) -> dict[str, str]:
    """Reads the metadata of a checkpoint's arrays, in the format of `_leaves`.

    Raises:
      UserError: the metadata or array index is missing or damaged.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            metadata = checkpointer.metadata(_LiteralPath(path / "default"))
            return _leaves(metadata.item_metadata.tree)
        except (ValueError, OSError, AttributeError) as error:
            raise UserError(
                f"{files.shown(path)} is not a gsjax checkpoint, or is damaged"
            ) from error


def _compare(path: epath.Path, found: dict[str, str], target: Any) -> None:
    """Compares a checkpoint's arrays with the target's: Orbax silently casts types.

    Raises:
      UserError: they differ.
    """
    wanted = _leaves(target)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{files.shown(path)} is not a checkpoint of this model: {name} is "
                f"{found.get(name, 'missing')}, but should be {wanted.get(name, 'absent')}"
            )


def _leaves(tree: Any) -> dict[str, str]:
    """Returns {leaf path: its dtype and shape}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _reason(error: BaseException) -> str:
    """Describes an Orbax error in one line, with its type unless it is a file error."""
    if isinstance(error, files.error_types()):
        return files.reason(error)
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number:
        return os.strerror(int(number[1]))
    if error.__cause__:  # Orbax wraps it in details of its store
        return _reason(error.__cause__)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _ignore_closed_loops(unraisable: Any) -> None:
    """Prints unraisable errors, except from writes that end after the first one has failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)

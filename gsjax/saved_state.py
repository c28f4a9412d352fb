"""The state of a training on the disk, by Orbax."""

import os
import re
import sys
from logging import getLogger
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from gsjax import files, parallel
from gsjax.errors import UserError


def write(path: epath.Path, state: Any) -> None:
    """Writes a state into `checkpoints/<step>`; all hosts call it together.

    Raises:
      UserError: the disk is full or fails.
    """
    # Orbax's threads tell a full disk in many words, some of them later.
    verbosity, hook = logging.get_verbosity(), sys.unraisablehook
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _all_but_closed_loops
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(path / "default", args=ocp.args.StandardSave(state))
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


def read(path: epath.Path, target: Any) -> Any:
    """Returns the state in `checkpoints/<step>`.

    Args:
      path: of the checkpoint.
      target: the state's shapes, types and shardings.

    Raises:
      UserError: it is no checkpoint, one of another model, or cannot be read.
    """
    item = path / "default"
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            found = _leaves(checkpointer.metadata(item).item_metadata.tree)
        except (ValueError, OSError, AttributeError) as error:
            raise UserError(f"{path} is no checkpoint of gsjax, or a damaged one") from error
        # Compared here, because Orbax casts another type without a word.
        wanted = _leaves(target)
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise UserError(
                    f"{path} is no checkpoint of this model: {name} is "
                    f"{found.get(name, 'missing')}, not {wanted.get(name, 'there')}"
                )
        try:
            return checkpointer.restore(item.as_posix(), target)
        except Exception as error:  # Orbax raises that very class
            if parallel.is_lost_peer(error):
                raise
            raise UserError(f"{path} cannot be restored: {_reason(error)}") from error


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

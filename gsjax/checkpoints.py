"""Checkpoints of the training state by Orbax, and the work directory's `config.json`."""

import contextlib
import json
import uuid
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from etils import epath

import gsjax
from gsjax import parallel, settings
from gsjax.errors import UserError


def absolute(path: str) -> epath.Path:
    """Returns a local path made absolute, and gs://... as it is."""
    expanded = epath.Path(path).expanduser()
    return expanded if "://" in expanded.as_posix() else expanded.absolute()


def write_text(file: epath.Path, text: str) -> None:
    """Writes a file that is there whole, or as it was before, also where two write it at once."""
    new = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.new")
    new.write_text(text)
    new.replace(file)


@contextlib.contextmanager
def told(path: epath.Path) -> Iterator[None]:
    """Turns the errors of writing files into one line that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def claim(
    workdir: epath.Path, config: ml_collections.ConfigDict, facts: dict[str, int | str | None]
) -> None:
    """Writes `config.json`, or compares it with that of the checkpoints that are there.

    Args:
      workdir: made if it is not there.
      config: the whole configuration.
      facts: what else decides which images come: their number, a digest of their files' names,
        and the number of hosts where it matters.

    Raises:
      UserError: the directory cannot be written, or belongs to a run that trains something else;
        the differences are listed.
    """
    file = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        steps = saved_steps(workdir)
        if file.exists() and steps:
            former = json.loads(file.read_text())
            differences = settings.shaping_differences(former["config"], config.to_dict())
            differences += [
                f"{name}: {former['data'][name]} -> {value}"
                for name, value in facts.items()
                if former["data"].get(name, value) != value  # an older run may lack it
            ]
            if differences:
                raise UserError(
                    f"{workdir} holds a run with other settings ({'; '.join(differences)}); take "
                    "the former settings, or a new --workdir; to go on from these weights there, "
                    f"add --config.checkpoint.load={workdir / 'checkpoints' / str(steps[-1])}"
                )
        parallel.sync_hosts("config.json is compared")
        if parallel.is_primary():
            content = {"gsjax": gsjax.__version__, "config": config.to_dict(), "data": facts}
            write_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"--workdir {workdir}: {type(error).__name__}: {error}") from error


def saved_steps(workdir: epath.Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a work directory."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdecimal())


def find(workdir: epath.Path, load: str) -> epath.Path | None:
    """Returns the checkpoint that an evaluation's `checkpoint.load` names, None for `none`.

    Raises:
      UserError: there is no such checkpoint.
    """
    if load == "none":
        return None
    steps = saved_steps(workdir)
    if load != "latest" and not load.isdecimal():
        path = absolute(load)
        if not path.exists() or not path.name.isdecimal():
            raise UserError(
                f"checkpoint.load: there is no checkpoint {path}; give the path of a "
                "checkpoints/<step>, latest, none or a step"
            )
        return path
    if not steps:
        raise UserError(
            f"{workdir} holds no checkpoint: train first (--job pretrain), name another --workdir, "
            "or measure the untrained encoder with checkpoint.load=none"
        )
    chosen = steps[-1] if load == "latest" else int(load)
    if chosen not in steps:
        raise UserError(
            f"checkpoint.load: no checkpoint of step {load} in {workdir / 'checkpoints'} "
            f"({', '.join(map(str, steps))})"
        )
    return workdir / "checkpoints" / str(chosen)


def restore(path: epath.Path, target: Any) -> Any:
    """Returns the state in `checkpoints/<step>`.

    Args:
      path: of the checkpoint.
      target: the state's shapes, types and shardings.

    Raises:
      UserError: it is no checkpoint, or one of another model.
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
            raise UserError(
                f"{path} is damaged: name another checkpoint with checkpoint.load"
            ) from error


class Checkpoints:
    """The checkpoints `workdir/checkpoints/<step>` of a run."""

    def __init__(self, workdir: epath.Path, keep: int, keep_every: int) -> None:
        self._folder = workdir / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, create=True
        )
        self._manager = ocp.CheckpointManager(self._folder.as_posix(), options=options)

    def save(self, step: int, state: Any) -> None:
        """Starts to write the state after `step` steps."""
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, load: str, target: Any) -> Any:
        """Returns the state that `checkpoint.load` names, or None for a fresh start.

        A directory with checkpoints goes on from them, also when `load` is the path that its first
        start began from.

        Args:
          load: latest, none, a step or a path.
          target: the state's shapes, types and shardings.

        Raises:
          UserError: there is no such checkpoint, or one of another model; or `load` is `none` and
            the directory holds checkpoints.
        """
        latest = self._manager.latest_step()
        if load == "none":
            if latest is not None:
                raise UserError(
                    f"checkpoint.load is none, but {self._folder} holds checkpoints up to step "
                    f"{latest}; choose another --workdir, or checkpoint.load=latest to go on"
                )
            return None
        if load.isdecimal():
            if latest is not None and int(load) < latest:
                raise UserError(
                    f"checkpoint.load={load}, but {self._folder} goes on to step {latest}; to "
                    f"branch off, give a new --workdir and checkpoint.load={self._folder / load}"
                )
            if int(load) not in self._manager.all_steps():
                steps = ", ".join(map(str, self._manager.all_steps())) or "none"
                raise UserError(
                    f"checkpoint.load: no checkpoint of step {load} in {self._folder} ({steps})"
                )
            return restore(self._folder / load, target)
        if latest is not None:
            return restore(self._folder / str(latest), target)
        if load == "latest":
            return None
        path = absolute(load)
        if not path.exists():
            raise UserError(f"checkpoint.load: there is no checkpoint {path}")
        return restore(path, target)

    def close(self) -> None:
        """Waits until what was started is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _leaves(tree: Any) -> dict[str, str]:
    """Returns {path of a leaf: its type and shape}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

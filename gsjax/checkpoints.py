"""Checkpoints of the training state by Orbax, and the work directory's `config.json`."""

import json
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from etils import epath

import gsjax
from gsjax import parallel, settings
from gsjax.errors import UserError


def claim(workdir: epath.Path, config: ml_collections.ConfigDict) -> None:
    """Writes `config.json`, or compares it with the one that a former start left.

    Raises:
      UserError: the directory cannot be written, or belongs to a run that trains something else;
        the differences are listed.
    """
    file = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if file.exists():
            former = json.loads(file.read_text())["config"]
            differences = settings.shaping_differences(former, config.to_dict())
            if differences:
                raise UserError(
                    f"{workdir} holds a run with other settings ({'; '.join(differences)}); "
                    "choose another --workdir or the former settings"
                )
        if parallel.is_primary():
            content = {"gsjax": gsjax.__version__, "config": config.to_dict()}
            file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"--workdir {workdir}: {type(error).__name__}: {error}") from error


class Checkpoints:
    """The checkpoints `workdir/checkpoints/<step>` of a run."""

    def __init__(self, workdir: epath.Path, keep: int, keep_every: int) -> None:
        self._folder = workdir / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, create=True
        )
        self._manager = ocp.CheckpointManager(self._folder.as_posix(), options=options)

    def save(self, step: int, state: Any) -> None:
        """Starts to write the state after `step` steps; does nothing where it stands already."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, load: str, state: Any) -> Any:
        """Returns the state that `checkpoint.load` names, or `state` itself for a fresh start.

        A directory with checkpoints goes on from them, also when `load` is the path that its first
        start began from.

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
            return state
        if load.isdigit():
            if int(load) not in self._manager.all_steps():
                steps = ", ".join(map(str, self._manager.all_steps())) or "none"
                raise UserError(
                    f"checkpoint.load: no checkpoint of step {load} in {self._folder} ({steps})"
                )
            return self._restore(self._folder / load, state)
        if latest is not None:
            return self._restore(self._folder / str(latest), state)
        if load == "latest":
            return state
        path = epath.Path(load).absolute()
        if not path.exists():
            raise UserError(f"checkpoint.load: there is no checkpoint {path}")
        return self._restore(path, state)

    def _restore(self, path: epath.Path, state: Any) -> Any:
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        item = path / "default" if (path / "default").exists() else path
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(item.as_posix(), target)
        except (ValueError, KeyError, FileNotFoundError) as error:
            message = str(error).strip().splitlines()[0]
            raise UserError(f"{path} is no checkpoint of this model: {message}") from error

    def close(self) -> None:
        """Waits until what was started is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

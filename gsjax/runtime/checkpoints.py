"""The checkpoints of a run: which are there, which to go on from, which to keep.

A checkpoint is complete with its manifest, and used only if its bytes are those of the manifest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from etils import epath

from gsjax.errors import UserError
from gsjax.runtime import files, manifest, metrics, parallel, saved_state

if TYPE_CHECKING:
    from clu import metric_writers  # imports TensorFlow


def saved_steps(workdir: epath.Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a work directory."""
    return [step for step in _steps(workdir) if manifest.exists(_path(workdir, step))]


def is_begun(workdir: epath.Path) -> bool:
    """Whether a work directory holds any checkpoint, complete or not."""
    return bool(_steps(workdir))


def find(workdir: epath.Path, load: str) -> epath.Path | None:
    """Returns the checkpoint that an evaluation's `checkpoint.load` names, None for `none`.

    The first host looks for all. `latest` is the newest that is as it was written.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    if load == "none":
        return None
    return epath.Path(parallel.from_primary(lambda: _find(workdir, load).as_posix()))


def _find(workdir: epath.Path, load: str) -> epath.Path:
    if load != "latest" and not load.isdecimal():
        path = files.absolute(load)
        if not path.exists() or not path.name.isdecimal():
            raise UserError(
                f"checkpoint.load: there is no checkpoint {path}; give the path of a "
                "checkpoints/<step>, latest, none or a step"
            )
        return _checked(path)
    if load == "latest":
        newest = _newest(workdir)
        if newest is None:
            raise UserError(
                f"{workdir} holds no checkpoint: train first (--job pretrain), name another "
                "--workdir, or measure the untrained encoder with checkpoint.load=none"
            )
        return newest
    steps = saved_steps(workdir)
    if int(load) not in steps:
        raise UserError(
            f"checkpoint.load: no checkpoint of step {load} in {workdir / 'checkpoints'} "
            f"({', '.join(map(str, steps)) or 'none'})"
        )
    return _checked(_path(workdir, int(load)))


class Checkpoints:
    """The checkpoints `workdir/checkpoints/<step>` of a run."""

    def __init__(self, workdir: epath.Path, keep: int, keep_every: int) -> None:
        """Keeps the `keep` newest, and one every `keep_every` steps unless that is 0.

        Raises:
          UserError: checkpoints cannot be kept in a folder of that name.
        """
        saved_state.check_path(workdir)
        self._workdir = workdir
        self._keep, self._keep_every = keep, keep_every
        self._damaged: set[int] = set()  # complete, but passed over

    def holds(self, step: int) -> bool:
        """Whether the state after `step` steps is there whole; all hosts ask together."""
        path = _path(self._workdir, step)
        return parallel.from_primary(lambda: step not in self._damaged and manifest.exists(path))

    def save(self, step: int, state: Any, writer: metric_writers.MetricWriter) -> None:
        """Writes the state after `step` steps, then removes older checkpoints.

        The metrics reach the disk first, and a checkpoint counts once its manifest is written,
        which the first host does when all have written their part.

        Raises:
          UserError: the disk is full or fails; what was there before is still there.
        """
        path = _path(self._workdir, step)
        writer.flush()
        if parallel.is_primary():
            with files.told(path):
                manifest.remove(path)  # what was left of a save or has been damaged
                path.mkdir(parents=True)
        parallel.sync_hosts(f"checkpoint {step} can be written")
        saved_state.write(path, state)
        parallel.sync_hosts(f"checkpoint {step} is written")
        if parallel.is_primary():
            with files.told(path):
                metrics.sync(self._workdir)
                manifest.write(path)
            self._damaged.discard(step)
            self._remove_older(step)
        parallel.sync_hosts(f"checkpoint {step} is complete")

    def _remove_older(self, newest: int) -> None:
        good = [step for step in saved_steps(self._workdir) if step not in self._damaged]
        kept = [step for step in good if step <= newest][-self._keep :]
        if self._keep_every:
            kept += [step for step in good if step % self._keep_every == 0]
        for step in _steps(self._workdir):
            if step < newest and step not in kept:
                path = _path(self._workdir, step)
                try:
                    manifest.remove(path)
                except files.error_types() as error:
                    metrics.say(f"warning: {path} cannot be removed: {files.reason(error)}")

    def restore(self, load: str, target: Any) -> Any:
        """Returns the state that `checkpoint.load` names, or None for a fresh start.

        A directory with checkpoints goes on from them, also when `load` is the path that its first
        start began from: from the newest that is as it was written.

        Args:
          load: latest, none or a path.
          target: the state's shapes, types and shardings.

        Raises:
          UserError: there is no such checkpoint, or it is damaged or one of another model; `load`
            is a step, or is `none` and the directory holds checkpoints.
        """
        chosen = parallel.from_primary(lambda: self._choose(load))
        return None if chosen is None else saved_state.read(epath.Path(chosen), target)

    def _choose(self, load: str) -> str | None:
        steps = saved_steps(self._workdir)
        if load.isdecimal():  # a second start with it would have to go back
            raise UserError(
                f"checkpoint.load={load}: a training goes on from the newest checkpoint of its "
                "--workdir (latest); to branch off from a step, give a new --workdir and "
                f"checkpoint.load={_path(self._workdir, int(load))}"
            )
        if load == "none":
            if steps:
                raise UserError(
                    f"checkpoint.load is none, but {self._workdir / 'checkpoints'} holds "
                    f"checkpoints up to step {steps[-1]}; choose another --workdir, or "
                    "checkpoint.load=latest to go on"
                )
            metrics.say("checkpoint.load is none: leave it out to go on after an interruption")
        chosen = _newest(self._workdir)
        first = int(chosen.name) if chosen else 0
        self._damaged = {step for step in steps if step > first}
        begin = f"going on from step {first}" if chosen else "beginning anew"
        torn = [step for step in _steps(self._workdir) if step > first and step not in steps]
        # A kill in the first save leaves one, and no metrics of later steps.
        if chosen is None and (len(torn) > 1 or self._was_beyond(torn)):
            raise UserError(
                f"no checkpoint in {self._workdir / 'checkpoints'} has its {manifest.FILE}: bring "
                "them back, or choose another --workdir to begin anew"
            )
        branched = None
        if chosen is None and load not in ("latest", "none"):
            path = files.absolute(load)
            if not path.exists():
                raise UserError(f"checkpoint.load: there is no checkpoint {path}")
            branched = _checked(path)
        for step in torn:
            path = _path(self._workdir, step)
            metrics.say(f"warning: {path} is incomplete (killed in its save): {begin}")
            if chosen is None:
                _put_aside(path)  # what two kills leave would look like lost manifests
        found = chosen or branched
        return found.as_posix() if found else None

    def _was_beyond(self, steps: list[int]) -> bool:
        """Whether the metrics tell of a training that went on after these saves.

        The step after may be there nevertheless: one that was not finite is found a step late.
        """
        records = metrics.read_records(self._workdir) if steps else []
        return any(record["step"] > max(steps) + 1 for record in records)


def _put_aside(path: epath.Path) -> None:
    aside = path.with_name(f"{path.name}.incomplete")
    metrics.say(f"put aside as {aside}")
    with files.told(path):
        if aside.exists():
            aside.rmtree()
        path.rename(aside)


def _path(workdir: epath.Path, step: int) -> epath.Path:
    return workdir / "checkpoints" / str(step)


def _steps(workdir: epath.Path) -> list[int]:
    """Of all checkpoints, also incomplete ones."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdecimal())


def _newest(workdir: epath.Path) -> epath.Path | None:
    """The newest complete checkpoint that is as it was written; names those that are not."""
    warnings: list[str] = []
    for step in reversed(saved_steps(workdir)):
        path = _path(workdir, step)
        fault = manifest.fault(path)
        if fault is None:
            for warning in warnings:
                metrics.say(f"warning: {warning}: going on from step {step}")
            return path
        if not manifest.exists(path):  # a training beside this evaluation has just removed it
            return _newest(workdir)
        warnings.append(f"checkpoint {path} is damaged ({fault})")
    if warnings:
        raise UserError(
            f"{'; '.join(warnings)}; there is no other to go on from: bring back a copy, or choose "
            "another --workdir"
        )
    return None


def _checked(path: epath.Path) -> epath.Path:
    """Returns the path of a checkpoint that is named if it is as it was written."""
    if not manifest.exists(path):
        raise UserError(f"{path} is no complete checkpoint: it has no {manifest.FILE}")
    fault = manifest.fault(path)
    if fault:
        raise UserError(f"{path} is damaged ({fault}): name another with checkpoint.load")
    return path

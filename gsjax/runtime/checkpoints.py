"""A run's checkpoints: finding, saving, restoring and pruning them.

A checkpoint is complete once it has a manifest, and is used only if its bytes match the manifest.
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


def any_exist(workdir: epath.Path) -> bool:
    """Whether a work directory has any checkpoint, complete or not."""
    return bool(_steps(workdir))


def find(workdir: epath.Path, load: str) -> epath.Path | None:
    """Returns the checkpoint that an evaluation's `checkpoint.load` names; None for `none`.

    The primary host decides for all hosts. `latest` is the newest undamaged checkpoint.

    Raises:
      UserError: the checkpoint does not exist or is damaged.
    """
    if load == "none":
        return None
    return epath.Path(parallel.from_primary(lambda: _find(workdir, load).as_posix()))


def _find(workdir: epath.Path, load: str) -> epath.Path:
    if load != "latest" and not load.isdecimal():
        path = files.absolute(load)
        if path.name.isdecimal() and path.exists():
            return _checked(path)
        if not any_exist(path):
            raise UserError(
                f"checkpoint.load: no checkpoint at {path}; give latest, none, a step, or the path "
                "of a work directory or its checkpoints/<step>"
            )
        workdir, load = path, "latest"
    if load == "latest":
        newest = _newest(workdir)
        if newest is None:
            raise UserError(
                f"no checkpoint in {workdir}: train first (--job pretrain), choose another "
                "--workdir, or evaluate the untrained encoder with checkpoint.load=none"
            )
        return newest
    steps = saved_steps(workdir)
    if int(load) not in steps:
        raise UserError(
            f"checkpoint.load: no checkpoint for step {load} in {workdir / 'checkpoints'} "
            f"(available: {', '.join(map(str, steps)) or 'none'})"
        )
    return _checked(_path(workdir, int(load)))


class Checkpoints:
    """A run's checkpoints, in `workdir/checkpoints/<step>`."""

    def __init__(self, workdir: epath.Path, keep: int, keep_every: int) -> None:
        """Keeps the `keep` newest, plus multiples of `keep_every` steps unless that is 0.

        Raises:
          UserError: the path of `workdir` rules out storing checkpoints there.
        """
        saved_state.check_path(workdir)
        self._workdir = workdir
        self._keep, self._keep_every = keep, keep_every
        self._damaged: set[int] = set()  # complete but damaged, so skipped

    def holds(self, step: int) -> bool:
        """Whether there is an undamaged checkpoint of `step`; every host must call it."""
        path = _path(self._workdir, step)
        return parallel.from_primary(lambda: step not in self._damaged and manifest.exists(path))

    def save(self, step: int, state: Any, writer: metric_writers.MetricWriter) -> None:
        """Saves the state after `step` steps, then removes older checkpoints.

        Metrics are synced to disk first. The checkpoint counts once the primary host has written
        its manifest, after all hosts have written their part.

        Raises:
          UserError: the disk is full or fails; earlier checkpoints are still there.
        """
        path = _path(self._workdir, step)
        writer.flush()
        if parallel.is_primary():
            with files.write_errors(path):
                manifest.remove(path)  # left over from an interrupted save, or damaged
                path.mkdir(parents=True)
        parallel.sync_hosts(f"checkpoint {step} can be written")
        saved_state.write(path, state)
        parallel.sync_hosts(f"checkpoint {step} is written")
        if parallel.is_primary():
            with files.write_errors(path):
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
                    metrics.log(f"warning: {path} cannot be removed: {files.reason(error)}")

    def restore(self, load: str, target: Any) -> Any:
        """Returns the state that `checkpoint.load` names, or None for a fresh start.

        A work directory that has checkpoints resumes from its newest undamaged one, even if `load`
        is the path of the checkpoint that its first start branched from.

        Args:
          load: latest, none or a path.
          target: the state's shapes, types and shardings.

        Raises:
          UserError: the checkpoint does not exist, is damaged or belongs to another model; or
            `load` is a step, or is `none` although the directory holds checkpoints.
        """
        chosen = parallel.from_primary(lambda: self._choose(load))
        return None if chosen is None else saved_state.read(epath.Path(chosen), target)

    def _choose(self, load: str) -> str | None:
        steps = saved_steps(self._workdir)
        if load.isdecimal():  # rerunning the command would rewind the run
            raise UserError(
                f"checkpoint.load={load}: training resumes from the newest checkpoint in its "
                "--workdir (latest); to branch off at a step, use a new --workdir and "
                f"checkpoint.load={_path(self._workdir, int(load))}"
            )
        if load == "none":
            if steps:
                raise UserError(
                    f"checkpoint.load is none, but {self._workdir / 'checkpoints'} has "
                    f"checkpoints up to step {steps[-1]}; choose another --workdir, or "
                    "checkpoint.load=latest to resume"
                )
            metrics.log("checkpoint.load is none: omit it to resume after an interruption")
        chosen = _newest(self._workdir)
        first = int(chosen.name) if chosen else 0
        self._damaged = {step for step in steps if step > first}
        incomplete = [step for step in _steps(self._workdir) if step > first and step not in steps]
        # A kill during the first save leaves one, and no metrics of later steps.
        if chosen is None and (len(incomplete) > 1 or self._continued_past(incomplete)):
            raise UserError(
                f"no checkpoint in {self._workdir / 'checkpoints'} has its {manifest.FILE}: "
                "restore these files, or choose another --workdir to start from scratch"
            )
        branched = None
        if chosen is None and load not in ("latest", "none"):
            path = files.absolute(load)
            if not path.exists():
                raise UserError(f"checkpoint.load: no checkpoint at {path}")
            branched = _checked(path)
        found = chosen or branched
        begin = f"resuming from step {first}" if chosen else f"starting from {found or 'scratch'}"
        for step in incomplete:
            path = _path(self._workdir, step)
            metrics.log(f"warning: {path} is incomplete (killed while saving): {begin}")
            if chosen is None:
                _set_aside(path)  # two such leftovers would look like lost manifests
        return found.as_posix() if found else None

    def _continued_past(self, steps: list[int]) -> bool:
        """Whether the metrics show that training continued past these saves.

        A single step past them proves nothing: non-finite values are detected one step late.
        """
        records = metrics.read_records(self._workdir) if steps else []
        return any(record["step"] > max(steps) + 1 for record in records)


def _set_aside(path: epath.Path) -> None:
    aside = path.with_name(f"{path.name}.incomplete")
    metrics.log(f"moved to {aside}")
    with files.write_errors(path):
        if aside.exists():
            aside.rmtree()
        path.rename(aside)


def _path(workdir: epath.Path, step: int) -> epath.Path:
    return workdir / "checkpoints" / str(step)


def _steps(workdir: epath.Path) -> list[int]:
    """Returns the steps of all checkpoints, including incomplete ones."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdecimal())


def _newest(workdir: epath.Path) -> epath.Path | None:
    """Returns the newest undamaged checkpoint, with a warning for each damaged one it skips."""
    warnings: list[str] = []
    for step in reversed(saved_steps(workdir)):
        path = _path(workdir, step)
        fault = manifest.fault(path)
        if fault is None:
            for warning in warnings:
                metrics.log(f"warning: {warning}: using step {step} instead")
            return path
        if not manifest.exists(path):  # a concurrent training run has just removed it
            return _newest(workdir)
        warnings.append(f"checkpoint {path} is damaged ({fault})")
    if warnings:
        raise UserError(
            f"{'; '.join(warnings)}; there is no other checkpoint: restore a copy, or choose "
            "another --workdir"
        )
    return None


def _checked(path: epath.Path) -> epath.Path:
    """Returns the path if it is a complete, undamaged checkpoint; raises UserError otherwise."""
    if not manifest.exists(path):
        raise UserError(f"{path} is not a complete checkpoint: it has no {manifest.FILE}")
    fault = manifest.fault(path)
    if fault:
        raise UserError(f"{path} is damaged ({fault}): choose another with checkpoint.load")
    return path

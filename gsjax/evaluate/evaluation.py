"""What all evaluation jobs share: the encoder, its features, and where results go."""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

import gsjax
from gsjax.data.sources import Source
from gsjax.data.transforms import Transform
from gsjax.errors import UserError
from gsjax.evaluate import results, store
from gsjax.evaluate.features import EncodeFn, Features, create_encode_fn, extract, report
from gsjax.methods import Method, create_method
from gsjax.runtime import (
    checkpoints,
    files,
    lock,
    metrics,
    ownership,
    parallel,
    saved_state,
    writers,
)
from gsjax.train import step
from gsjax.train.optimizers import create_optimizer


class Evaluation:
    """One job on one encoder.

    Attributes:
      config: the whole configuration.
      name: of the job.
      workdir: folder of the run.
      folder: `workdir/<job>`, or `workdir/<job>_untrained`: what the job writes besides its result.
      step: of the checkpoint; None for an untrained encoder.
      method: of the pre-training, with all modules.
      params: of all modules, on every device.
      batch_stats: their statistics, on every device.
      encoder: the module.
      variables: its parameters and statistics.
      mesh: the devices.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        name: str,
        workdir: epath.Path,
        checkpoint: epath.Path | None,
        method: Method,
        state: step.TrainState,
        mesh: Mesh,
    ) -> None:
        self.config, self.name, self.workdir = config, name, workdir
        self.folder = workdir / (name if checkpoint else f"{name}_untrained")
        self.step = int(checkpoint.name) if checkpoint else None
        self.method, self.mesh = method, mesh
        self.params, self.batch_stats = state.params, state.batch_stats
        self.encoder, self.variables = method.modules["encoder"], step.encoder_variables(state)
        self._checkpoint = checkpoint
        self._recorded: list[dict] = []

    @functools.cached_property
    def digest(self) -> str:
        """Of the encoder's variables."""
        return store.digest(self.variables)

    @functools.cached_property
    def normalisation(self) -> tuple[tuple, tuple, Any]:
        """Mean, standard deviation and type of normalised pixels."""
        return step.pixels(self.config)

    @functools.cached_property
    def encode_fn(self) -> EncodeFn:
        """(variables, images uint8 [B, H, W, 3]) -> representations [B, F]."""
        return create_encode_fn(self.encoder, *self.normalisation, self.mesh)

    def features(
        self,
        source: Source,
        transform: Transform,
        indices: np.ndarray | None = None,
        shapes: Sequence | None = None,
        need_all: bool = False,
    ) -> Features:
        """Encodes pictures, or takes their features from an earlier job of the same encoder.

        Args:
          source: the pictures.
          transform: of each.
          indices: ascending int64 [n], the pictures to take; None for all (as with `shapes`).
          shapes: where the transform gives several, something for each picture that is equal only
            where the shapes are.
          need_all: whether a picture that cannot be decoded is an error.
        """
        keep = self.config.features.keep
        folder = self.workdir / "features" / "kept"
        key = self._key(source, transform, indices) if keep else ""
        kept = store.load(folder, key) if keep else None
        if parallel.everywhere(kept is not None) and kept is not None:
            metrics.say(f"features of {source.name} are taken from an earlier job")
            return report(source, kept, need_all)
        if shapes is None:
            rows = self._extract(source, transform, self.config.features.batch_size, indices)
        else:
            rows = self._extract_by_shape(source, transform, shapes)
        report(source, rows, need_all)
        if keep:
            store.save(folder, key, rows)
        return rows

    def _key(self, source: Source, transform: Transform, indices: np.ndarray | None) -> str:
        return store.key_of(
            gsjax=gsjax.__version__,
            encoder=self.digest,
            model=self.config.encoder.to_dict(),
            normalisation=self.normalisation,
            source=source.name,
            files=store.digest(np.array(source.files(), dtype=str)),
            labelled=source.labelled,
            transform=repr(transform),
            indices="all" if indices is None else store.digest(indices),
        )

    def _extract(self, source, transform, batch_size, indices) -> Features:
        label = f"features of {source.dataset}"
        return extract(
            self.encode_fn, self.variables, source, transform, batch_size, self.mesh, label, indices
        )

    def _extract_by_shape(self, source, transform, shapes) -> Features:
        """One program for each shape of a picture, one picture on a device at a time."""
        if jax.process_count() > 1:  # a host without a picture would not know the shape
            raise UserError("pictures of various shapes are encoded by one process alone")
        groups: dict[Any, list[int]] = {}
        for index, shape in enumerate(shapes):
            groups.setdefault(shape, []).append(index)
        progress = metrics.Progress(f"features of {source.dataset}", len(shapes), inner=True)
        parts = []
        for indices in groups.values():
            parts.append(self._extract(source, transform, 1, np.array(indices)))
            progress.update(sum(len(part.indices) for part in parts))
        progress.close()
        rows = Features(*(np.concatenate(c) for c in zip(*parts, strict=True)))
        order = np.argsort(rows.indices)
        return Features(*(column[order] for column in rows))

    def writer(self, restored_step: int = writers.KEEP_ALL) -> writers.MetricWriter:
        """A CLU writer into the job's folder; what it holds of later steps is cut."""
        with files.told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            return writers.create_writer(self.folder, restored_step)

    def record(
        self,
        dataset: str,
        scores: Mapping[str, float],
        protocol: Mapping[str, Any],
        details: Mapping[str, Any] | None = None,
        at: int | None = None,
    ) -> None:
        """Keeps a result, in `workdir/results/<job>.json` and, by CLU, in the job's folder.

        Args:
          dataset: what was measured on.
          scores: {`<job>/...`: percent or other figure}.
          protocol: every setting and count that the scores depend on. A result of the same
            encoder, data set and protocol is replaced.
          details: what else is worth knowing.
          at: step of the metrics; that of the checkpoint if None.
        """
        entry = {
            "checkpoint": "untrained" if self._checkpoint is None else str(self._checkpoint),
            "step": self.step,
            "encoder": {**self.config.encoder.to_dict(), "digest": self.digest},
            "method": self.config.method,
            "image_size": self.config.data.image_size,
            "normalisation": self.normalisation[:2],
            "dataset": dataset,
            "scores": {name: float(value) for name, value in scores.items()},
            "protocol": dict(protocol),
            "details": dict(details or {}),
            "gsjax": gsjax.__version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        entry = json.loads(json.dumps(entry, allow_nan=False))  # as it will be read again
        if not parallel.is_primary():
            return
        file = self.workdir / "results" / f"{self.name}.json"
        # Several evaluations may record at a time, in the job's folder as well.
        try:
            with lock.turn(file):
                known = results.read(file)
                others = [other for other in known if not results.same(other, entry)]
                with files.told(file):
                    files.write_text(file, json.dumps([*others, entry], indent=1) + "\n")
                self._write_scores(scores, (self.step or 0) if at is None else at)
        except lock.InUse as error:
            raise UserError(f"{error}; not written: {json.dumps(entry['scores'])}") from error
        if len(others) < len(known):
            metrics.say(f"replaces the earlier result of the same checkpoint on {dataset}")
        self._recorded.append(entry)

    def _write_scores(self, scores: Mapping[str, float], at: int) -> None:
        with files.told(self.folder):
            metrics.forget(self.folder, at, set(scores))
        with contextlib.closing(self.writer()) as writer:
            writer.write_scalars(at, scores)

    def print_table(self) -> None:
        """Prints what was recorded, beside the untrained encoder's and earlier like results."""
        if not self._recorded:
            return
        file = self.workdir / "results" / f"{self.name}.json"
        known = [
            entry
            for entry in results.read(file)
            if any(results.comparable(entry, own) for own in self._recorded)
        ]
        rows = [("data set", "encoder", "score", "value")]
        for entry in known:
            encoder = "untrained" if entry["step"] is None else f"step {entry['step']}"
            for score, value in entry["scores"].items():
                rows.append((entry["dataset"], encoder, score.split("/", 1)[1], f"{value:.2f}"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        for row in rows:
            cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            metrics.say(f"  {cells}  {row[3]:>7}".rstrip())
        metrics.say(f"written to {file}")


def _restore(
    checkpoint: epath.Path, look: Callable[[], epath.Path | None], target: Any
) -> tuple[epath.Path, step.TrainState]:
    """Returns a checkpoint with its state; all hosts the same.

    If a training beside this evaluation has removed it meanwhile, what `look` finds is taken.
    """
    state: Any = None
    error = None
    try:
        state = saved_state.read(checkpoint, target)
    except UserError as told:
        error = told
    if parallel.everywhere(error is None):
        return checkpoint, state
    newer = look()
    if newer is None or newer == checkpoint:
        raise error or UserError(f"another process cannot restore {checkpoint}")
    return newer, saved_state.read(newer, target)


@contextlib.contextmanager
def open_evaluation(
    config: ml_collections.ConfigDict, workdir: str, name: str
) -> Iterator[Evaluation]:
    """Loads the encoder that `checkpoint.load` names; prints the results at the end.

    Raises:
      UserError: there is no such checkpoint, or it is damaged or one of another model; the work
        directory cannot be written; or hosts were started with different settings.
    """
    folder = files.absolute(workdir)
    mesh = parallel.create_mesh(jax.device_count())
    method = create_method(config, mesh.devices.flat[0].platform)
    ours = {"config": config.to_dict(), "data": {}}

    def begin() -> dict[str, Any]:
        files.check_writable(folder / "results")
        return ours

    ownership.compare_hosts(parallel.from_primary(begin), ours)
    checkpoint = checkpoints.find(folder, config.checkpoint.load)
    # Only the shape of the optimiser's state matters here, which is the same for every rate.
    optimizer = create_optimizer(config, optax.constant_schedule(0.0))
    create = step.create_state_fn(method, optimizer, mesh)
    init_key, _ = step.keys(config)
    if checkpoint is None:
        state = create(init_key)
    else:
        look = functools.partial(checkpoints.find, folder, config.checkpoint.load)
        checkpoint, state = _restore(checkpoint, look, create.eval_shape(init_key))
    metrics.say(f"devices  {metrics.device_line()}")
    metrics.say(f"encoder  {checkpoint or 'untrained'} ({config.encoder.name}, {config.method})")
    metrics.say(f"workdir  {folder}")
    job = Evaluation(config, name, folder, checkpoint, method, state, mesh)
    try:
        yield job
    finally:
        job.print_table()

"""What all evaluation jobs share: the encoder, and where results go."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

import gsjax
from gsjax.config import choices
from gsjax.data import transforms
from gsjax.errors import UserError
from gsjax.evaluate import pictures, results
from gsjax.evaluate.encoder import Encoder
from gsjax.evaluate.encoder_reader import Loaded, read_encoder
from gsjax.runtime import files, lock, metrics, ownership, parallel, writers
from gsjax.train import step


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluator measured.

    Attributes:
      dataset: name of the data set.
      scores: {`<job>/...`: percentage or other figure}.
      protocol: every setting and count that the scores depend on.
      details: anything else worth knowing.
      figures: {name: uint8 [H, W, 3]}, needed on the primary host only.
      files: {file name: function that makes its text}, called on the primary host only, once the
        scores are written; where it returns None, an older file is removed.
      tuned: names in `protocol` that may be chosen for each encoder, such as a learning rate: they
        tell measurements apart, but do not make them incomparable.
    """

    dataset: str
    scores: Mapping[str, float]
    protocol: Mapping[str, Any]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    files: Mapping[str, Callable[[], str | None]] = dataclasses.field(default_factory=dict)
    tuned: tuple[str, ...] = ()


Evaluator = Callable[[Encoder], Iterable[Result]]
"""Measures an encoder, in a job or during training."""


class Evaluation:
    """One job on one encoder.

    Attributes:
      config: the whole configuration.
      name: name of the job.
      workdir: work directory of the run.
      folder: `workdir/<job>`, or `workdir/<job>_untrained` or `_weights`, for what the job writes
        besides results.
      step: step of the checkpoint; None for an untrained encoder or one from a weights file.
      encoder: the encoder to evaluate.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        name: str,
        workdir: epath.Path,
        loaded: Loaded,
        encoder: Encoder,
    ) -> None:
        self.config, self.name, self.workdir = config, name, workdir
        self._suffix = "_weights" if loaded.format else "" if loaded.path else "_untrained"
        self.folder = self.folder_of(name)
        self.step = int(loaded.path.name) if loaded.path and not loaded.format else None
        self.encoder = encoder
        self._loaded = loaded
        self._recorded: list[dict] = []

    def folder_of(self, name: str) -> epath.Path:
        """Returns the folder of a job on the same encoder."""
        return self.workdir / f"{name}{self._suffix}"

    def record_all(self, evaluator: Evaluator) -> None:
        """Runs an evaluator; records each result as it arrives."""
        for result in evaluator(self.encoder):
            self.record(result)

    def writer(self, restored_step: int = writers.KEEP_ALL) -> writers.MetricWriter:
        """Creates a CLU writer for the job's folder; cuts off what it holds of later steps."""
        with files.write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            return writers.create_writer(self.folder, restored_step)

    def record(self, result: Result, at: int | None = None) -> None:
        """Records a result in `workdir/results/<job>.json`, replacing that of the same measurement.

        Scores and figures are also written to the job's folder, for TensorBoard.

        Args:
          result: result of the job.
          at: step of the metrics; the checkpoint's if None.
        """
        dataset, scores = result.dataset, result.scores
        entry = {
            "checkpoint": "untrained" if self._loaded.path is None else str(self._loaded.path),
            "step": self.step,
            "encoder": {**self.encoder.settings, "digest": self.encoder.digest},
            **self.origin(),
            "image_size": self.config.data.image_size,
            "normalization": self.encoder.normalization[:2],
            "dataset": dataset,
            "scores": {name: float(value) for name, value in scores.items()},
            "protocol": dict(result.protocol),
            "details": dict(result.details),
            **({"tuned": list(result.tuned)} if result.tuned else {}),
            "gsjax": gsjax.__version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        entry = json.loads(json.dumps(entry, allow_nan=False))  # as it will be read back
        if not parallel.is_primary():
            return
        file = self.workdir / "results" / f"{self.name}.json"
        # Several evaluations may record concurrently, in the job's folder as well.
        try:
            with lock.exclusive(file):
                known = results.read(file)
                others = [other for other in known if not results.same(other, entry)]
                with files.write_errors(file):
                    files.write_text(file, json.dumps([*others, entry], indent=1) + "\n")
                self._write_scores(scores, (self.step or 0) if at is None else at)
        except lock.InUse as error:
            raise UserError(f"{error}; not written: {json.dumps(entry['scores'])}") from error
        if len(others) < len(known):
            metrics.log(f"replaces the earlier result of the same checkpoint on {dataset}")
        self._recorded.append(entry)
        if result.figures:
            with lock.exclusive(file):
                self._write_figures(result.figures)
        self._write_files(result.files)

    @property
    def encoder_path(self) -> epath.Path | None:
        """Checkpoint or file of the encoder; None for the weights of step 0."""
        return self._loaded.path

    @property
    def run(self) -> epath.Path | None:
        """Work directory of the training run of the encoder; None if no run of gsjax trained it."""
        path = self._loaded.path
        return path.parent.parent if path and not self._loaded.format else None

    def origin(self) -> dict[str, str]:
        """Returns what trained the encoder: the method, or who wrote the weights."""
        if self._loaded.format:
            return {"weights": self._loaded.format}
        return {"method": self.config.method}

    def _write_scores(self, scores: Mapping[str, float], at: int) -> None:
        with files.write_errors(self.folder):
            metrics.forget(self.folder, at, set(scores))
        with contextlib.closing(self.writer()) as writer:
            writer.write_scalars(at, scores)

    def _write_figures(self, figures: Mapping[str, np.ndarray]) -> None:
        with contextlib.closing(self.writer()) as writer:
            for i, (name, figure) in enumerate(figures.items()):
                path = self.folder / f"{_file_name(name, i)}.png"
                with files.write_errors(path):
                    pictures.save(figure, path)
                writer.write_images(self.step or 0, {name: figure[None]})
        metrics.log(f"figures written to {files.shown(self.folder)}: {len(figures)}")

    def _write_files(self, makers: Mapping[str, Callable[[], str | None]]) -> None:
        for name, make in makers.items():
            text = make()
            with files.write_errors(self.folder / name):
                if text is None:
                    (self.folder / name).unlink(missing_ok=True)
                else:
                    files.write_text(self.folder / name, text)

    def print_table(self) -> None:
        """Prints the recorded results, with the untrained encoder's and comparable earlier ones."""
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
            encoder = f"step {entry['step']}"
            if entry["step"] is None:
                encoder = entry.get("weights", "untrained")
            chosen = [f"{name} {entry['protocol'][name]:g}" for name in entry.get("tuned", ())]
            encoder = ", ".join([encoder, *chosen])
            for score, value in entry["scores"].items():
                rows.append((entry["dataset"], encoder, score.split("/", 1)[1], f"{value:.2f}"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        for row in rows:
            cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            metrics.log(f"  {cells}  {row[3]:>7}".rstrip())
        metrics.log(f"written to {file}")


def _file_name(name: str, number: int) -> str:
    """Turns a figure's name into a file name, leaving room for more in the 255 bytes allowed."""
    name = name.replace("/", "_")
    return name if len(name.encode()) <= 150 else f"{name[:30]}_{number}"


def as_encoder(
    config: ml_collections.ConfigDict, loaded: Loaded, mesh: Mesh, kept: epath.Path | None = None
) -> Encoder:
    """Creates the encoder that was read.

    Args:
      config: the whole configuration.
      loaded: what was read.
      mesh: the devices.
      kept: where representations are kept for later jobs, or None.
    """
    return Encoder(
        loaded.module,
        loaded.variables,
        step.pixels(config),
        mesh,
        choices.encoder_settings(config),
        config.features.batch_size,
        folder=kept,
        pretrained=loaded.pretrained,
    )


def _pixels(config: ml_collections.ConfigDict) -> str:
    transform = transforms.of_config(config)
    return (
        f"images   {transform.method} to a short side of {transform.short_side}, central "
        f"{transform.size} x {transform.size} pixels; mean {config.data.mean}, std "
        f"{config.data.std}"
    )


@contextlib.contextmanager
def open_evaluation(
    config: ml_collections.ConfigDict, workdir: str, name: str, heads: bool = False
) -> Iterator[Evaluation]:
    """Loads the encoder named by `checkpoint.load`; prints the results at the end.

    Args:
      config: the whole configuration.
      workdir: work directory of the run.
      name: name of the job.
      heads: whether to load the method's heads as well, as `Encoder.pretrained`.

    Yields:
      The evaluation.

    Raises:
      UserError: the checkpoint is missing, damaged or from another model; the work directory cannot
        be written; or hosts were started with different settings.
    """
    folder = files.absolute(workdir)
    mesh = parallel.create_mesh(jax.device_count())
    ours = {"config": config.to_dict(), "data": {}}

    def begin() -> dict[str, Any]:
        files.check_writable(folder / "results")
        return ours

    ownership.compare_hosts(parallel.from_primary(begin), ours)
    loaded = read_encoder(config, folder, mesh, heads)
    encoder = as_encoder(
        config, loaded, mesh, folder / "features" / "kept" if config.features.keep else None
    )
    metrics.log(f"devices  {metrics.device_line()}")
    origin = loaded.format or config.method
    metrics.log(f"encoder  {loaded.path or 'untrained'} ({config.encoder.name}, {origin})")
    for line in (*loaded.notes, *([_pixels(config)] if loaded.format else [])):
        metrics.log(line)
    metrics.log(f"workdir  {folder}")
    job = Evaluation(config, name, folder, loaded, encoder)
    try:
        yield job
    finally:
        job.print_table()

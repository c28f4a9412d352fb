"""The job `pretrain`: images in, a trained encoder out."""

import contextlib
import dataclasses
import functools
import itertools
import math
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from gsjax.crops import Crops, of_batch
from gsjax.data import input_pipeline, order, sources
from gsjax.data.source import Source
from gsjax.errors import UserError
from gsjax.evaluate import pictures
from gsjax.evaluate.encoder_reader import read_initial_encoder
from gsjax.evaluate.monitor import Monitor, create_monitor, has_measured
from gsjax.methods import create_method
from gsjax.methods.base import Method, each_view
from gsjax.models import ENCODERS
from gsjax.runtime import (
    checkpoints,
    environment,
    files,
    lock,
    memory,
    metrics,
    ownership,
    parallel,
    writers,
)
from gsjax.trackers.tracker import Tracker, is_behind
from gsjax.train import monitors, step
from gsjax.train.collapse import CollapseWarning
from gsjax.train.fit import Run, Trace, fit
from gsjax.train.memory import describe_step
from gsjax.train.optimizers import (
    create_optimizer,
    create_schedule,
    create_weight_decay,
    first_steps,
)
from gsjax.train.overlap import OverlapWarning
from gsjax.train.state import TrainState

_DIVERGENCE_ADVICE = (
    "Usually the learning rate is too high or its warmup too short; with bfloat16, float32 may "
    "help. Either change needs a new --workdir"
)


def pretrain(config: ml_collections.ConfigDict, workdir: str) -> TrainState:
    """Trains for the configured length, resuming from the newest checkpoint if there is one.

    Args:
      config: as `gsjax.config.settings.check` returns it.
      workdir: work directory; holds `config.json`, `checkpoints`, `metrics.jsonl`, TensorBoard
        files and `examples.png`.

    Returns:
      The final state.

    Raises:
      UserError: the devices, data or work directory do not match the settings, or another training
        run holds the work directory.
    """
    if config.encoder.weights:
        raise UserError("encoder.weights is for evaluations; pre-training starts from encoder.init")
    folder = files.absolute(workdir)
    with lock.held(folder, "pretrain"):
        training = _open(config, folder)
        with memory.explain_out_of_memory(lambda: describe_step(config, None)):
            state = _finish(training)
    if training.monitor:
        training.monitor.report(folder)
    return state


@dataclasses.dataclass(frozen=True)
class _Training:
    config: ml_collections.ConfigDict
    folder: epath.Path
    mesh: Mesh
    saved: checkpoints.Checkpoints
    source: Source
    facts: dict[str, Any]  # about the data
    num_steps: int
    epoch_steps: int
    schedule: optax.Schedule
    method: Method
    optimizer: optax.GradientTransformation
    monitor: Monitor | None

    def measures_after(self, done: int) -> bool:
        """Whether the kNN monitor measures after `done` steps."""
        every = math.ceil(self.config.knn.every_epochs * self.epoch_steps)
        return bool(self.monitor) and (done == self.num_steps or bool(every and done % every == 0))

    def needs_measurement(self, done: int) -> bool:
        """Whether a signal cut short the measurement of the restored step."""
        return (
            done > 0
            and self.measures_after(done)
            and not parallel.from_primary(lambda: has_measured(self.folder, done))
        )


def _open(config: ml_collections.ConfigDict, folder: epath.Path) -> _Training:
    """Opens the data and the work directory, and creates the method."""
    mesh = parallel.create_mesh(config.batch_size)
    saved = checkpoints.Checkpoints(folder, config.checkpoint.keep, config.checkpoint.keep_every)
    source = sources.open_source(config.data, config.data.split)
    epoch_steps = order.steps_per_epoch(source, config.batch_size)
    num_steps = config.num_steps or config.num_epochs * epoch_steps
    schedule = create_schedule(config, num_steps, epoch_steps)
    method = create_method(config)
    local, chunks = config.batch_size // mesh.size, config.loss.chunks
    if local % chunks:
        raise UserError(f"loss.chunks is {chunks}; it must divide the {local} images of a device")
    optimizer = create_optimizer(
        config,
        schedule,
        method.param_groups,
        create_weight_decay(config, num_steps),
        late_steps=first_steps(config, method.late_epochs, num_steps, epoch_steps),
    )
    monitor = create_monitor(config, source, method, mesh)
    facts = {
        "num_images": source.num_examples,
        "file_names": source.names_digest,
        "version": source.version,
        "hosts": jax.process_count() if source.shards else None,
    }
    ownership.claim(folder, config, facts)
    metrics.log(f"devices  {metrics.device_line()}")
    metrics.log(f"data     {source.name}, {source.num_examples} images")
    metrics.log(f"workdir  {folder}")
    return _Training(
        config, folder, mesh, saved, source, facts, num_steps, epoch_steps,
        schedule, method, optimizer, monitor,
    )  # fmt: skip


def _finish(training: _Training) -> TrainState:
    """Runs the remaining steps and measurements; returns the final state."""
    config, folder, num_steps = training.config, training.folder, training.num_steps
    create = step.create_state_fn(config, training.method, training.optimizer, training.mesh)
    init_key, key = step.keys(config)
    state = training.saved.restore(config.checkpoint.load, create.eval_shape(init_key))
    if state is None and config.encoder.init:
        state = create(init_key, read_initial_encoder(config, training.mesh))
    elif state is None:
        state = create(init_key)
    elif config.encoder.init:
        metrics.log(f"encoder.init is ignored: the run is at step {int(state.step)}")
    first = int(state.step)
    if first >= num_steps and not training.saved.holds(first):  # from another directory
        raise UserError(
            f"checkpoint.load={config.checkpoint.load} is at step {first}, but this run ends "
            f"at step {num_steps}: increase num_steps or num_epochs to continue from it"
        )
    unmeasured = training.needs_measurement(first)
    if first >= num_steps and not unmeasured:
        metrics.log(f"finished: the checkpoint of step {first} exists, nothing to do")
        _send_rest(training, first)
        return state
    environment.record_start(folder, first)
    metrics.log(f"steps    {num_steps} of {config.batch_size} images, from step {first}")
    writer = writers.create_writer(folder, first, config.log.tracker)
    with contextlib.closing(writer):
        if unmeasured and training.monitor:
            writer.write_scalars(first, training.monitor.measure(state))
            writer.flush()
        if first < num_steps:
            state = _train(training, state, key, writer)
            if ENCODERS[config.encoder.name].names:
                command = f"python -m gsjax.main --workdir {shlex.quote(files.shown(folder))}"
                metrics.log(f"to export the encoder: {command} --job export")
        writer.mark_complete()
    return state


def _send_rest(training: _Training, step: int) -> None:
    """Sends what an experiment tracker lacks of a finished run."""
    name, folder = training.config.log.tracker, training.folder
    if parallel.is_primary() and is_behind(name, folder):
        with contextlib.closing(Tracker(name, folder, step)) as tracker:
            tracker.mark_complete()


def _train(
    training: _Training, state: TrainState, key: jax.Array, writer: writers.RunWriter
) -> TrainState:
    """Trains from the state's step on."""
    config, folder, monitor = training.config, training.folder, training.monitor
    first = int(state.step)

    def save(done: int, state: TrainState) -> None:
        ownership.renew(folder, config, training.facts)
        training.saved.save(done, state, writer)
        writer.saved(done)

    collapse, overlap = CollapseWarning(config), OverlapWarning(config.crops)

    def check(done: int, scalars: Mapping[str, float]) -> None:
        collapse.check(done, scalars["train/embedding_std"])
        overlap.check(done, scalars.get("train/crops_outside", 0.0))

    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(
            contextlib.closing(
                input_pipeline.train_batches(
                    training.source,
                    config,
                    first,
                    training.num_steps,
                    jax.process_index(),
                    jax.process_count(),
                    local_views=True,
                )
            )
        )
        stream: Iterator = batches
        if first == 0:
            batch = next(batches)
            stream = itertools.chain([batch], batches)
            if parallel.is_primary() and config.log.example_pairs:
                _write_examples(training, batch, key, writer)
            if monitor and config.knn.baselines:
                writer.write_scalars(0, monitor.baselines(state))
        run = Run(
            label=config.method,
            folder=folder,
            batch_size=config.batch_size,
            learning_rate=training.schedule,
            log_every=config.log.every_steps,
            save_every=config.checkpoint.every_steps,
            writer=writer,
            holds=training.saved.holds,
            save=save,
            advice=_DIVERGENCE_ADVICE,
            describe_memory=functools.partial(describe_step, config),
            before_step=stack.enter_context(Trace(config.profile, folder)).before,
            summarize=monitors.summarize,
            on_log=check,
            evaluate_after=training.measures_after,
            evaluate=monitor.measure if monitor else None,
        )
        program = step.create_train_step(
            config,
            training.method,
            training.optimizer,
            training.mesh,
            training.num_steps,
            training.epoch_steps,
        )
        columns = ("global", "local") if config.crops.local_views else ("global",)
        return fit(state, program, stream, training.num_steps, run, training.mesh, columns, key)


def _write_examples(
    training: _Training, batch: dict[str, Any], key: jax.Array, writer: writers.RunWriter
) -> None:
    """Draws the views of the first images, augmented as in the first step."""
    config, folder = training.config, training.folder
    n = min(config.log.example_pairs, len(batch["global"].images))
    step_key = jax.random.fold_in(jax.device_get(key), 0)
    crops = {name: Crops(part.images[:n], part.boxes[:n]) for name, part in of_batch(batch).items()}
    augment = jax.jit(lambda crops, k: step.augment_views(crops, k, jnp.arange(n), config))
    mean, std = (np.asarray(part) for part in step.normalization(config))
    augmented = augment(crops, step_key)
    views = [np.asarray(view) * std + mean for view in each_view(augmented)]
    originals = input_pipeline.load_images(training.source, batch["index"][:n].tolist())
    boxes = {name: part.boxes for name, part in crops.items()}
    psi = np.asarray(training.method.psi(boxes))
    everywhere = np.concatenate(list(boxes.values()), axis=1)
    picture = pictures.draw_views(originals, everywhere, views, psi)
    with files.write_errors(folder):
        pictures.save(picture, folder / "examples.png")
    writer.write_images(0, {"examples": picture[None]})

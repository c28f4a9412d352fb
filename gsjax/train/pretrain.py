"""The job `pretrain`: images in, a trained encoder out."""

import contextlib
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from gsjax.data import input_pipeline, order, sources
from gsjax.errors import UserError
from gsjax.evaluate import pictures
from gsjax.evaluate.monitor import create_monitor, has_measured
from gsjax.methods import Method, create_method
from gsjax.runtime import (
    checkpoints,
    environment,
    files,
    interrupts,
    lock,
    memory,
    metrics,
    ownership,
    parallel,
    writers,
)
from gsjax.train import loop, step
from gsjax.train.optimizers import create_optimizer, create_schedule

_AGAINST_DIVERGENCE = (
    "Usually the learning rate is too high or its warm-up too short; with bfloat16, float32 may "
    "help. Both need another --workdir"
)


def pretrain(config: ml_collections.ConfigDict, workdir: str) -> step.TrainState:
    """Trains until the configured length, from the newest checkpoint if there is one.

    Args:
      config: as `gsjax.config.settings.check` returns it.
      workdir: folder of the run; holds `config.json`, `checkpoints`, `metrics.jsonl`, TensorBoard
        files and `examples.png`.

    Returns:
      The final state.

    Raises:
      UserError: devices, data or the work directory do not fit the settings; or another training
        holds the work directory.
    """
    folder = files.absolute(workdir)
    with lock.held(folder, "pretrain"):
        return _pretrain(config, folder)


def _pretrain(config: ml_collections.ConfigDict, folder: epath.Path) -> step.TrainState:
    mesh = parallel.create_mesh(config.batch_size)
    saved = checkpoints.Checkpoints(folder, config.checkpoint.keep, config.checkpoint.keep_every)
    source = sources.open_source(config.data, config.data.split)
    epoch_steps = order.steps_per_epoch(source, config.batch_size)
    num_steps = config.num_steps or config.num_epochs * epoch_steps
    knn_steps = math.ceil(config.knn.every_epochs * epoch_steps)
    schedule = create_schedule(config, num_steps, epoch_steps)
    optimizer = create_optimizer(config, schedule)
    method = create_method(config, mesh.devices.flat[0].platform)
    monitor = create_monitor(config, source, method.modules["encoder"], mesh)
    hosts = jax.process_count() if source.shards else None
    facts = {
        "num_images": source.num_examples,
        "file_names": source.names_digest,
        "version": source.version,
        "hosts": hosts,
    }
    ownership.claim(folder, config, facts)
    metrics.say(f"devices  {metrics.device_line()}")
    metrics.say(f"data     {source.name}, {source.num_examples} images")
    metrics.say(f"workdir  {folder}")

    train_step: jax.stages.Compiled | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory.told_out_of_memory(lambda: memory.of_step(config, train_step)))
        create = step.create_state_fn(method, optimizer, mesh)
        init_key, key = step.keys(config)
        state = saved.restore(config.checkpoint.load, create.eval_shape(init_key))
        if state is None:
            state = create(init_key)
        first = done = int(state.step)
        if first >= num_steps and not saved.holds(first):  # that of another directory
            raise UserError(
                f"checkpoint.load={config.checkpoint.load} is of step {first}, and this training "
                f"ends at step {num_steps}: make num_steps or num_epochs larger to go on from there"
            )

        def save(done: int, state: step.TrainState) -> None:
            ownership.renew(folder, config, facts)
            saved.save(done, state, writer)

        def knn_is_due(done: int) -> bool:
            return done == num_steps or bool(knn_steps and done % knn_steps == 0)

        # A signal may have cut short the measurement that belongs to the restored step.
        owed = None
        if monitor and first and knn_is_due(first):
            measured = parallel.from_primary(lambda: has_measured(folder, first))
            owed = None if measured else monitor
        if first < num_steps or owed:
            environment.note_start(folder, first)
            metrics.say(f"steps    {num_steps} of {config.batch_size} images, from step {first}")
            writer = writers.create_writer(folder, first)
            stack.enter_context(contextlib.closing(writer))
            if owed:
                writer.write_scalars(first, owed.measure(state))
                writer.flush()
        else:
            metrics.say(f"finished: the encoder after {first} steps is there, nothing to do")
        if first >= num_steps:
            if monitor:
                monitor.report(folder)
            return state

        batches = input_pipeline.train_batches(
            source, config, first, num_steps, jax.process_index(), jax.process_count()
        )
        stack.enter_context(contextlib.closing(batches))
        stream: Iterator = batches
        if first == 0:
            batch = next(batches)
            stream = itertools.chain([batch], batches)
            if parallel.is_primary() and config.log.example_pairs:
                _write_examples(batch, source, config, method, key, folder, writer)
            if monitor and config.knn.baselines:
                writer.write_scalars(0, monitor.baselines(state))
        asked = interrupts.Request()
        watch = loop.Watch(asked, mesh)
        stream = parallel.prefetch(watch.feed(stream, "views", "boxes"), mesh)
        batch = next(stream)
        metrics.say("compiling the step; a second start takes it from the cache")
        program = step.create_train_step(config, method, optimizer, mesh)
        train_step = program.lower(state, batch, key).compile()
        stream = itertools.chain([batch], stream)
        collapse = loop.CollapseWarning(config)
        progress = metrics.Progress(config.method, num_steps, first)
        stack.enter_context(contextlib.closing(progress))
        trace = stack.enter_context(loop.Trace(config.profile, folder))
        clock = loop.Clock(config.batch_size, first)
        stopping = 0
        stack.enter_context(interrupts.deferred(asked))
        try:
            while done < num_steps and not stopping:
                trace.before(done + 1, state)
                with clock.waiting():
                    batch = next(stream)
                state, values = train_step(state, batch, key)
                done += 1
                clock.after_step(done, values)
                stopping = watch.after_step(done, values)
                last = done == num_steps or stopping
                if done % config.log.every_steps == 0 or last:
                    scalars = loop.log(writer, clock, done, values, float(schedule(done - 1)))
                    collapse.look(done, scalars["train/embedding_std"])
                    progress.describe(_summary(scalars))
                progress.update(done)
                if done == num_steps:
                    progress.close()
                if monitor and knn_is_due(done) and not stopping:  # else the next start owes it
                    watch.settle()
                    save(done, state)  # whatever becomes of the measurement
                    try:
                        scalars = monitor.measure(state, watch.check)
                    except interrupts.Stopped as error:
                        loop.leave(done, error.signal)
                    writer.write_scalars(done, scalars)
                    writer.flush()
                    clock.restart(done)
                if last or done % config.checkpoint.every_steps == 0:
                    watch.settle()
                    if not saved.holds(done):
                        save(done, state)
                    clock.restart(done)
        except loop.NotFinite as error:
            good = int(state.step)
            if good and not saved.holds(good):
                save(good, step.marked_finite(state))
            raise error.told(folder, _AGAINST_DIVERGENCE) from error
        stopping = watch.last_signal()
    if stopping:
        loop.leave(done, stopping)
    if monitor:
        monitor.report(folder)
    return state


def _write_examples(
    batch: dict[str, np.ndarray],
    source: sources.Source,
    config: ml_collections.ConfigDict,
    method: Method,
    key: jax.Array,
    folder: epath.Path,
    writer: writers.MetricWriter,
) -> None:
    """Draws the first pairs of the first batch, augmented as the first step does it."""
    n = min(config.log.example_pairs, len(batch["views"]))
    boxes = batch["boxes"][:n]
    step_key = jax.random.fold_in(jax.device_get(key), 0)
    augment = jax.jit(lambda views, k: step.augment_batch(views, k, jnp.arange(n), config))
    mean, std = (np.asarray(part) for part in step.normalisation(config))
    views = np.moveaxis(np.asarray(augment(batch["views"][:n], step_key)), 0, 1) * std + mean
    originals = input_pipeline.load_images(source, batch["index"][:n].tolist())
    psi = np.stack([np.asarray(part) for part in method.psi(jnp.asarray(boxes))], axis=1)
    picture = pictures.draw_pairs(originals, boxes, views, psi)
    with files.told(folder):
        pictures.save(picture, folder / "examples.png")
    writer.write_images(0, {"examples": picture[None]})


def _summary(scalars: dict[str, float]) -> str:
    text = f"loss {scalars['train/loss']:.3f}"
    if "train/data_wait" in scalars:
        text += f"  {scalars['train/images_per_second']:.0f} images/s"
        text += f"  waiting {scalars['train/data_wait']:.0%}"
    return text

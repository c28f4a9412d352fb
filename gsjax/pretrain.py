"""The job `pretrain`: images in, a trained encoder out."""

import contextlib
import functools
import itertools
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from clu import metric_writers
from etils import epath
from PIL import Image

from gsjax import checkpoints, metrics, parallel, pictures, step
from gsjax.data import input_pipeline, order, sources
from gsjax.errors import UserError
from gsjax.evaluate.monitor import create_monitor
from gsjax.methods import Method, create_method
from gsjax.optimizers import create_optimizer, create_schedule


def pretrain(config: ml_collections.ConfigDict, workdir: str) -> step.TrainState:
    """Trains until the configured length, from the newest checkpoint if there is one.

    Args:
      config: as `gsjax.settings.check` returns it.
      workdir: folder of the run; holds `config.json`, `checkpoints`, `metrics.jsonl`, TensorBoard
        files and `examples.png`.

    Returns:
      The final state.

    Raises:
      UserError: devices, data or the work directory do not fit the settings.
    """
    folder = checkpoints.absolute(workdir)
    mesh = parallel.create_mesh(config.batch_size)
    source = sources.open_source(config.data, config.data.split)
    epoch_steps = order.steps_per_epoch(source, config.batch_size)
    num_steps = config.num_steps or config.num_epochs * epoch_steps
    knn_steps = math.ceil(config.knn.every_epochs * epoch_steps)
    schedule = create_schedule(config, num_steps, epoch_steps)
    optimizer = create_optimizer(config, schedule)
    method = create_method(config, mesh.devices.flat[0].platform)
    monitor = create_monitor(config, source, method.modules["encoder"], mesh)
    hosts = jax.process_count() if source.shards else None
    checkpoints.claim(folder, config, {"num_images": source.num_examples, "hosts": hosts})
    metrics.say(f"devices  {metrics.device_line()}")
    metrics.say(f"data     {source.name}, {source.num_examples} images")
    metrics.say(f"workdir  {folder}")

    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def create(key):
        return step.create_state(method, optimizer, key)

    with contextlib.ExitStack() as stack:
        saved = checkpoints.Checkpoints(
            folder, config.checkpoint.keep, config.checkpoint.keep_every
        )
        stack.enter_context(contextlib.closing(saved))
        init_key, key = jax.random.split(jax.random.key(config.seed))
        state = saved.restore(config.checkpoint.load, create.eval_shape(init_key))
        if state is None:
            state = create(init_key)
        first = done = int(state.step)
        if first >= num_steps:
            metrics.say(f"finished: the encoder after {first} steps is there, nothing to do")
            if monitor:
                monitor.report(folder)
            return state
        metrics.say(f"steps    {num_steps} of {config.batch_size} images, from step {first}")

        writer = stack.enter_context(contextlib.closing(metrics.create_writer(folder, first)))
        train_step = step.create_train_step(config, method, optimizer, mesh)
        batches = input_pipeline.train_batches(
            source, config, first, num_steps, jax.process_index(), jax.process_count()
        )
        stack.enter_context(contextlib.closing(batches))
        stop = stack.enter_context(_stop_on_signal())
        stream: Iterator = batches
        if first == 0:
            batch = next(batches)
            stream = itertools.chain([batch], batches)
            if parallel.is_primary() and config.log.example_pairs:
                _write_examples(batch, source, config, method, key, folder, writer)
            if monitor and config.knn.baselines:
                writer.write_scalars(0, monitor.baselines(state))
        stream = ({name: batch[name] for name in ("views", "boxes")} for batch in stream)
        stream = parallel.prefetch(stream, mesh)
        metrics.say("compiling the step; a second start takes it from the cache")
        progress = metrics.Progress(config.method, num_steps, first)
        stack.enter_context(contextlib.closing(progress))
        trace = stack.enter_context(_Trace(config.profile, folder))
        clock = _Clock(config.batch_size, first)
        stopping = 0
        while done < num_steps and not stopping:
            trace.before(done + 1, state)
            with clock.waiting():
                batch = next(stream)
            state, values = train_step(state, batch, key)
            done += 1
            if done == first + 1:
                jax.block_until_ready(values)  # the compilation is no step's time
                clock.restart(done)
            stopping = stop.signal
            last = done == num_steps or stopping
            if done % config.log.every_steps == 0 or last:
                scalars = {f"train/{name}": float(value) for name, value in values.items()}
                scalars["train/learning_rate"] = float(schedule(done - 1))
                scalars.update(clock.read(done))
                writer.write_scalars(done, scalars)
                writer.flush()
                progress.describe(_summary(scalars))
            progress.update(done)
            if done == num_steps:
                progress.close()
            if monitor and (done == num_steps or (knn_steps and done % knn_steps == 0)):
                try:
                    writer.write_scalars(done, monitor.measure(state))
                except UserError:  # a damaged test picture must not cost the training
                    saved.save(done, state)
                    raise
                writer.flush()
                clock.restart(done)
            if last or done % config.checkpoint.every_steps == 0:
                saved.save(done, state)
                clock.restart(done)
    if done < num_steps:
        metrics.say(f"stopped and saved at step {done}; the same command goes on from there")
        sys.exit(128 + stopping)
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
    writer: metric_writers.MetricWriter,
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
    with (folder / "examples.png").open("wb") as file:
        Image.fromarray(picture).save(file, format="PNG")
    writer.write_images(0, {"examples": picture[None]})


def _summary(scalars: dict[str, float]) -> str:
    text = f"loss {scalars['train/loss']:.3f}"
    if "train/data_wait" in scalars:
        text += f"  {scalars['train/images_per_second']:.0f} images/s"
        text += f"  waiting {scalars['train/data_wait']:.0%}"
    return text


class _Clock:
    """Images per second and the share of time spent waiting for data, between two readings."""

    def __init__(self, batch_size: int, done: int) -> None:
        self._batch_size = batch_size
        self.restart(done)

    def restart(self, done: int) -> None:
        """Begins anew after `done` steps; what has passed since the last reading is left out."""
        self._began, self._done, self._waited = time.monotonic(), done, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self._waited += time.monotonic() - before

    def read(self, done: int) -> dict[str, float]:
        """Returns both figures and restarts; nothing when no step has been timed."""
        seconds = time.monotonic() - self._began
        images = (done - self._done) * self._batch_size
        if not images:
            return {}
        scalars = {
            "train/images_per_second": images / seconds,
            "train/data_wait": self._waited / seconds,
        }
        self.restart(done)
        return scalars


class _Stop:
    """The signal that asked to stop; 0 while none did."""

    signal = 0


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[_Stop]:
    """Turns the first Ctrl-C or SIGTERM into a request to save and stop; the next one kills.

    Of several processes each would stop at a step of its own, so there a signal just kills.
    """
    stop = _Stop()
    former: dict[int, Any] = {}

    def ask(number, frame):
        stop.signal = number
        print("stopping after this step; once more to leave at once", file=sys.stderr)
        for each, handler in former.items():
            signal.signal(each, handler)

    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            former[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)


class _Trace:
    """The profiler's trace of the steps that the group `profile` names."""

    def __init__(self, settings: ml_collections.ConfigDict, folder: epath.Path) -> None:
        self._steps = range(settings.first_step, settings.first_step + settings.num_steps)
        self._folder = folder / "profile"
        self._running = False

    def __enter__(self):
        return self

    def before(self, upcoming: int, state: step.TrainState) -> None:
        """Starts or ends the trace before the step number `upcoming`."""
        wanted = upcoming in self._steps
        if wanted and not self._running:
            jax.profiler.start_trace(self._folder.as_posix())
        elif self._running and not wanted:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
        self._running = wanted

    def __exit__(self, *error) -> None:
        if self._running:
            jax.profiler.stop_trace()

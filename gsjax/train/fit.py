"""The training loop, which pre-training and every trained head share."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import jax
import ml_collections
import optax
from etils import epath
from jax.sharding import Mesh

from gsjax.runtime import interrupts, memory, metrics, parallel
from gsjax.train.state import TrainState, marked_finite
from gsjax.train.watch import NotFinite, Watch

if TYPE_CHECKING:
    from clu import metric_writers  # imports TensorFlow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What `fit` needs to know about a training besides its steps.

    Attributes:
      label: of the progress line.
      folder: of the run, where a step that is not finite leaves its images.
      batch_size: images of a step, over all devices.
      learning_rate: per step.
      log_every: steps between two lines of metrics.
      save_every: steps between two checkpoints; the end is always saved.
      writer: of the metrics.
      holds: whether the checkpoint after so many steps is there.
      save: writes the checkpoint after so many steps.
      advice: against values that are not finite.
      describe_memory: what to say where the memory of the devices does not suffice, of the compiled
        step or of None before there is one.
      before_step: called with the number of the upcoming step, from 1, and the state.
      on_log: takes the metrics that were just written.
      evaluate_after: whether to call `evaluate` after so many steps.
      evaluate: (state, check) -> metrics; `check` may raise to break it off.
    """

    label: str
    folder: epath.Path
    batch_size: int
    learning_rate: optax.Schedule
    log_every: int
    save_every: int
    writer: "metric_writers.MetricWriter"
    holds: Callable[[int], bool]
    save: Callable[[int, TrainState], None]
    advice: str
    describe_memory: Callable[[jax.stages.Compiled | None], str]
    before_step: Callable[[int, TrainState], None] = lambda upcoming, state: None
    on_log: Callable[[int, Mapping[str, float]], None] = lambda done, scalars: None
    evaluate_after: Callable[[int], bool] = lambda done: False
    evaluate: Callable[[TrainState, Callable[[], None]], Mapping[str, float]] | None = None


def fit(
    state: TrainState,
    step_fn: jax.stages.Wrapped,
    batches: Iterator[dict[str, Any]],
    num_steps: int,
    run: Run,
    mesh: Mesh,
    columns: tuple[str, ...],
    *arguments: Any,
) -> TrainState:
    """Trains until `num_steps`; a signal saves the state and stops.

    Args:
      state: to start from; it is donated.
      step_fn: compiled (state, batch, *arguments) -> (state, metrics), with `finite` among the
        metrics.
      batches: of this host, from the step of the state on; each has `index`.
      num_steps: steps of the whole training.
      run: everything else.
      mesh: the devices.
      columns: of a batch, for the step.
      *arguments: for the step.

    Returns:
      The state after the last step.

    Raises:
      UserError: a step was not finite, or does not fit into the memory of the devices; the last
        good state is saved.
      Stopped: a signal asked for it; the state is saved.
    """
    first = int(state.step)
    compiled: jax.stages.Compiled | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory.told_out_of_memory(lambda: run.describe_memory(compiled)))
        asked = interrupts.Request()
        watch = Watch(asked, mesh)
        stream: Iterator = parallel.prefetch(watch.feed(batches, *columns), mesh)
        batch = next(stream)
        metrics.say("compiling the step; a second start takes it from the cache")
        compiled = step_fn.lower(state, batch, *arguments).compile()
        stream = itertools.chain([batch], stream)
        progress = metrics.Progress(run.label, num_steps, first)
        stack.enter_context(contextlib.closing(progress))
        clock = Clock(run.batch_size, first)
        stack.enter_context(interrupts.deferred(asked))
        done, stopping = first, 0
        try:
            while done < num_steps and not stopping:
                run.before_step(done + 1, state)
                with clock.waiting():
                    batch = next(stream)
                state, values = compiled(state, batch, *arguments)
                done += 1
                clock.after_step(done, values)
                stopping = watch.after_step(done, values)
                last = done == num_steps or bool(stopping)
                if last or done % run.log_every == 0:
                    _log(run, clock, progress, done, values)
                progress.update(done)
                if done == num_steps:
                    progress.close()
                if run.evaluate and run.evaluate_after(done) and not stopping:
                    _evaluate(run, watch, done, state)
                    clock.restart(done)
                if last or done % run.save_every == 0:
                    watch.settle()
                    if not run.holds(done):
                        run.save(done, state)
                    clock.restart(done)
        except NotFinite as error:
            good = int(state.step)
            if good and not run.holds(good):
                run.save(good, marked_finite(state))
            raise error.told(run.folder, run.advice) from error
        stopping = watch.last_signal()
    if stopping:
        _leave(done, stopping)
    return state


def _log(run: Run, clock: "Clock", progress: metrics.Progress, done: int, values: Mapping) -> None:
    """Writes a step's values, its learning rate and what the clock reads."""
    scalars = {f"train/{name}": float(value) for name, value in values.items()}
    scalars["train/learning_rate"] = float(run.learning_rate(done - 1))
    scalars.update(clock.read(done))
    run.writer.write_scalars(done, scalars)
    run.writer.flush()
    text = f"loss {scalars['train/loss']:.3f}"
    if "train/data_wait" in scalars:
        text += f"  {scalars['train/images_per_second']:.0f} images/s"
        text += f"  waiting {scalars['train/data_wait']:.0%}"
    progress.describe(text)
    run.on_log(done, scalars)


def _evaluate(run: Run, watch: Watch, done: int, state: TrainState) -> None:
    """Saves, whatever becomes of the measurement; then measures. A stop leaves it to a restart."""
    assert run.evaluate
    watch.settle()
    run.save(done, state)
    try:
        scalars = run.evaluate(state, watch.check)
    except interrupts.Stopped as error:
        _leave(done, error.signal)
    run.writer.write_scalars(done, scalars)
    run.writer.flush()


def _leave(done: int, number: int) -> NoReturn:
    metrics.say(f"stopped and saved at step {done}; the same command goes on from there")
    raise interrupts.Stopped(number)


class Clock:
    """Images per second and the share of time spent waiting for data, between two readings."""

    def __init__(self, batch_size: int, done: int) -> None:
        self._batch_size, self._first = batch_size, done
        self.restart(done)

    def restart(self, done: int) -> None:
        """Begins anew after `done` steps; what has passed since the last reading is left out."""
        self._began, self._done, self._waited = time.monotonic(), done, 0.0

    def after_step(self, done: int, values: Any) -> None:
        """Leaves out the first step, whose time is that of the compilation."""
        if done == self._first + 1:
            jax.block_until_ready(values)
            self.restart(done)

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


class Trace:
    """The profiler's trace of the steps that the group `profile` names."""

    def __init__(self, settings: ml_collections.ConfigDict, folder: epath.Path) -> None:
        self._steps = range(settings.first_step, settings.first_step + settings.num_steps)
        self._folder = folder / "profile"
        self._running = False

    def __enter__(self):
        return self

    def before(self, upcoming: int, state: TrainState) -> None:
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

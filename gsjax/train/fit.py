"""The training loop, shared by pre-training and every trained head."""

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
    """What `fit` needs to know about a training run besides its steps.

    Attributes:
      label: label of the progress line.
      folder: folder of the run, where a non-finite step's images are listed.
      batch_size: images per step, over all devices.
      learning_rate: learning rate per step.
      log_every: steps between metrics.
      save_every: steps between checkpoints; the end is always saved.
      writer: writes the metrics.
      holds: whether the checkpoint of a step exists.
      save: saves the checkpoint of a step.
      advice: what to try against non-finite values.
      describe_memory: describes the memory needs of the compiled step, or of None before it is
        compiled, when device memory runs out.
      before_step: called with the number of the upcoming step, from 1, and the state.
      summarize: turns a step's metrics into the numbers to log.
      on_log: receives the metrics just written.
      evaluate_after: whether to call `evaluate` after a step.
      evaluate: (state, check) -> metrics; `check` may raise to abort it.
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
    summarize: Callable[[Mapping[str, Any]], dict[str, float]] = lambda values: {
        name: float(value) for name, value in values.items()
    }
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
    """Trains up to step `num_steps`; on a signal, saves the state and stops.

    Args:
      state: state to start from; it is donated.
      step_fn: compiled (state, batch, *arguments) -> (state, metrics), with `finite` among the
        metrics.
      batches: this host's batches from the state's step on; each has `index`.
      num_steps: total steps of the training run.
      run: everything else.
      mesh: the devices.
      columns: columns of a batch that the step takes.
      *arguments: further arguments of the step.

    Returns:
      The state after the last step.

    Raises:
      UserError: a step was not finite, or does not fit into device memory; the last good state is
        saved.
      Stopped: a signal requested it; the state is saved.
    """
    first = int(state.step)
    compiled: jax.stages.Compiled | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory.explain_out_of_memory(lambda: run.describe_memory(compiled)))
        request = interrupts.Request()
        watch = Watch(request, mesh)
        stream: Iterator = parallel.prefetch(watch.feed(batches, *columns), mesh)
        batch = next(stream)
        metrics.log("compiling the step (later runs load it from the cache)")
        compiled = step_fn.lower(state, batch, *arguments).compile()
        stream = itertools.chain([batch], stream)
        progress = metrics.Progress(run.label, num_steps, first)
        stack.enter_context(contextlib.closing(progress))
        clock = Clock(run.batch_size, first)
        stack.enter_context(interrupts.deferred(request))
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
            raise error.report(run.folder, run.advice) from error
        stopping = watch.last_signal()
    if stopping:
        _stop(done, stopping)
    return state


def _log(run: Run, clock: "Clock", progress: metrics.Progress, done: int, values: Mapping) -> None:
    """Writes a step's values, its learning rate and the clock's readings."""
    scalars = {f"train/{name}": value for name, value in run.summarize(values).items()}
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
    """Saves first, then evaluates; if stopped while evaluating, leaves that to a restart."""
    assert run.evaluate
    watch.settle()
    run.save(done, state)
    try:
        scalars = run.evaluate(state, watch.check)
    except interrupts.Stopped as error:
        _stop(done, error.signal)
    run.writer.write_scalars(done, scalars)
    run.writer.flush()


def _stop(done: int, number: int) -> NoReturn:
    metrics.log(f"stopped and saved at step {done}; rerun the same command to resume")
    raise interrupts.Stopped(number)


class Clock:
    """Images per second and the share of time spent waiting for data, between two readings."""

    def __init__(self, batch_size: int, done: int) -> None:
        self._batch_size, self._first = batch_size, done
        self.restart(done)

    def restart(self, done: int) -> None:
        """Restarts at step `done`; the time since the last reading is not counted."""
        self._began, self._done, self._waited = time.monotonic(), done, 0.0

    def after_step(self, done: int, values: Any) -> None:
        """Excludes the first step, whose time is that of compilation."""
        if done == self._first + 1:
            jax.block_until_ready(values)
            self.restart(done)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self._waited += time.monotonic() - before

    def read(self, done: int) -> dict[str, float]:
        """Returns both figures and restarts; empty if no step has been timed."""
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
    """A profiler trace of the steps chosen by the `profile` settings."""

    def __init__(self, settings: ml_collections.ConfigDict, folder: epath.Path) -> None:
        self._steps = range(settings.first_step, settings.first_step + settings.num_steps)
        self._folder = folder / "profile"
        self._running = False

    def __enter__(self):
        return self

    def before(self, upcoming: int, state: TrainState) -> None:
        """Starts or stops the trace before step `upcoming`."""
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

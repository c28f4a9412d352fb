"""What training loops share: the clock, stopping on a signal, the profiler's trace."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import ml_collections
from clu import metric_writers
from etils import epath

from gsjax import metrics, step


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


def log(
    writer: metric_writers.MetricWriter,
    clock: Clock,
    done: int,
    values: Mapping[str, jax.Array],
    learning_rate: float,
) -> dict[str, float]:
    """Writes a step's values, learning rate and what the clock reads; returns what it wrote."""
    scalars = {f"train/{name}": float(value) for name, value in values.items()}
    scalars["train/learning_rate"] = learning_rate
    scalars.update(clock.read(done))
    writer.write_scalars(done, scalars)
    writer.flush()
    return scalars


def leave(done: int, number: int) -> NoReturn:
    """Ends the program after a signal's request."""
    metrics.say(f"stopped and saved at step {done}; the same command goes on from there")
    sys.exit(128 + number)


class Stop:
    """The signal that asked to stop, 0 while none did, and when it came."""

    signal = 0
    time = 0.0


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Turns the first Ctrl-C or SIGTERM into a request to save and stop; a later one kills.

    What follows within a second is the same request: a cluster signals every process of a job, and
    the parent of a sweep's member hands it on.

    Of several processes each would stop at a step of its own, so there a signal just kills.
    """
    stop = Stop()
    former: dict[int, Any] = {}

    def ask(number, frame):
        now = time.monotonic()
        if not stop.signal:
            stop.signal, stop.time = number, now
            print("stopping after this step; once more to leave at once", file=sys.stderr)
        elif now - stop.time > 1:
            for each, handler in former.items():
                signal.signal(each, handler)
            signal.raise_signal(number)

    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            former[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)


class Trace:
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

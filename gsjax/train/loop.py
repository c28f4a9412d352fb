"""What training loops share: the clock, the watch over each step, the profiler's trace."""

from __future__ import annotations

import collections
import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from gsjax.errors import UserError
from gsjax.runtime import files, metrics, parallel
from gsjax.runtime.interrupts import Request, Stopped
from gsjax.train import step

if TYPE_CHECKING:
    from clu import metric_writers  # imports TensorFlow, as does gsjax.data

    from gsjax.data.input_pipeline import Batch

_NAMED = 8  # images that a message names
# embedding_std * sqrt(D): healthy runs have 0.35 and more, also at their lowest
_COLLAPSED = 0.1
_COLLAPSED_READINGS = 3


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
    raise Stopped(number)


class NotFinite(Exception):
    """Something in a step was not finite; the state is still the one before it.

    Attributes:
      step: number of that step, from 1.
      metric: which was not: `loss`, `grad_norm` or, if they were finite, `parameters`.
      index: int64 [B] of the step's images in their source, over all hosts.
    """

    def __init__(self, step: int, metric: str, index: np.ndarray) -> None:
        super().__init__(step, metric, index)
        self.step, self.metric, self.index = step, metric, index

    def told(self, folder: epath.Path, advice: str) -> UserError:
        """Writes the images of the step to a file and returns what to tell the user."""
        file = folder / "not_finite.json"
        found = {"step": self.step, "metric": self.metric, "images": self.index.tolist()}
        if parallel.is_primary():
            with files.told(file):
                files.write_text(file, json.dumps(found) + "\n")
        some = ", ".join(map(str, self.index[:_NAMED]))
        kept = f"; the state of step {self.step - 1} is saved" if self.step > 1 else ""
        return UserError(
            f"step {self.step}: {self.metric} not finite{kept}. The {len(self.index)} images of "
            f"the step are in {file} by index ({some}, ...). {advice}"
        )


class Watch:
    """Looks a step late whether all was finite, and whether this or another host was interrupted.

    A step late, because reading a step's values waits for it: the devices work on the next one
    meanwhile.
    """

    def __init__(self, asked: Request, mesh: Mesh) -> None:
        self._asked = asked
        self._any_host = parallel.create_any_host(mesh) if jax.process_count() > 1 else None
        self._indices: collections.deque = collections.deque()  # of batches not yet used
        self._unread: collections.deque = collections.deque()  # steps
        self._signal = 0

    def feed(self, batches: Iterable[Batch], *names: str) -> Iterator[Batch]:
        """The columns `names` of the batches that the steps will be taken on, in their order."""
        for batch in batches:
            self._indices.append(batch["index"])
            yield {name: batch[name] for name in names}

    def after_step(self, done: int, values: dict[str, jax.Array]) -> int:
        """Takes `finite` out of the values of the step just started.

        Returns:
          `signal`.

        Raises:
          NotFinite: the step before was not.
        """
        vote = self._any_host(self._asked.signal) if self._any_host else None
        self._unread.append((done, values.pop("finite"), values, self._indices.popleft(), vote))
        self._read(1)
        return self.signal

    @property
    def signal(self) -> int:
        """The signal that asks to stop, the same on every host after the same step; or 0."""
        return self._signal if self._any_host else self._asked.signal

    def last_signal(self) -> int:
        """`signal`, also of what came after the last step; all hosts ask together."""
        if self._any_host and not self._signal:
            self._signal = int(self._any_host(self._asked.signal))
        return self.signal

    def check(self) -> None:
        """Raises Stopped if a signal came, to break off a measurement.

        One of several hosts cannot break off what the others take part in: there it never raises.
        """
        if not self._any_host:
            self._asked.check()

    def settle(self) -> None:
        """Looks at the last step as well, before its state is measured or saved.

        Raises:
          NotFinite: it was not.
        """
        self._read(0)

    def _read(self, left: int) -> None:
        while len(self._unread) > left:
            done, finite, values, index, vote = self._unread.popleft()
            if not finite:
                bad = [n for n in ("loss", "grad_norm") if not np.isfinite(values[n])]
                everywhere = parallel.gather((index,))[0]
                raise NotFinite(done, bad[0] if bad else "parameters", everywhere)
            if vote is not None:
                self._signal = self._signal or int(vote)


class CollapseWarning:
    """Says once, in words, that the embeddings have shrunk to a point."""

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self._full = config.projector.out_dim**-0.5
        graded_simclr = config.method == "simclr" and config.similarity.measure != "none"
        self._also = ", or similarity.scale=0.5" if graded_simclr else ""
        self._low = 0  # readings in a row
        self._said = False

    def look(self, done: int, spread: float) -> None:
        """Takes a reading of `embedding_std`."""
        self._low = self._low + 1 if spread < _COLLAPSED * self._full else 0
        if self._low == _COLLAPSED_READINGS and not self._said:
            self._said = True
            metrics.say(
                f"warning: at step {done} the embeddings have nearly collapsed: their spread is "
                f"{spread:.2g}, where {self._full:.2g} fills the sphere. Try a lower "
                f"optimizer.learning_rate or a longer schedule.warmup_epochs{self._also}"
            )


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

"""The watch over every step: whether all was finite, and whether a signal asks to stop."""

import collections
import json
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from gsjax.errors import UserError
from gsjax.runtime import files, parallel
from gsjax.runtime.interrupts import Request

_NAMED = 8  # images that a message names


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
    """Checks for non-finite values and stop requests of any host, one step behind.

    One step behind, because reading the values of a step waits for it: meanwhile the devices work
    on the next one.
    """

    def __init__(self, asked: Request, mesh: Mesh) -> None:
        self._asked = asked
        self._any_host = parallel.create_any_host(mesh) if jax.process_count() > 1 else None
        self._indices: collections.deque = collections.deque()  # of batches not yet used
        self._unread: collections.deque = collections.deque()  # steps
        self._signal = 0

    def feed(self, batches: Iterable[dict], *names: str) -> Iterator[dict]:
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

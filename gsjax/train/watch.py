"""Checks every step for non-finite values and stop requests."""

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

_NAMED = 8  # images named in a message


class NotFinite(Exception):
    """A step was not finite; the state is still the one before it.

    Attributes:
      step: number of that step, from 1.
      metric: what was not finite: `loss`, `grad_norm` or, if both were, `parameters`.
      index: int64 [B] indices of the step's images in their source, over all hosts.
    """

    def __init__(self, step: int, metric: str, index: np.ndarray) -> None:
        super().__init__(step, metric, index)
        self.step, self.metric, self.index = step, metric, index

    def report(self, folder: epath.Path, advice: str) -> UserError:
        """Writes the step's image indices to a file and returns the error for the user."""
        file = folder / "not_finite.json"
        found = {"step": self.step, "metric": self.metric, "images": self.index.tolist()}
        if parallel.is_primary():
            with files.write_errors(file):
                files.write_text(file, json.dumps(found) + "\n")
        some = ", ".join(map(str, self.index[:_NAMED]))
        kept = f"; the state of step {self.step - 1} is saved" if self.step > 1 else ""
        return UserError(
            f"step {self.step}: {self.metric} not finite{kept}. {file} lists the indices of its "
            f"{len(self.index)} images ({some}, ...). {advice}"
        )


class Watch:
    """Checks for non-finite values and stop requests of any host, one step behind.

    Reading a step's values waits for it; lagging one step behind keeps the devices busy with the
    next one.
    """

    def __init__(self, request: Request, mesh: Mesh) -> None:
        self._request = request
        self._any_host = parallel.create_any_host(mesh) if jax.process_count() > 1 else None
        self._indices: collections.deque = collections.deque()  # of batches not yet used
        self._unread: collections.deque = collections.deque()  # steps
        self._signal = 0

    def feed(self, batches: Iterable[dict], *names: str) -> Iterator[dict]:
        """Yields the columns `names` of the batches, which the steps must use in this order."""
        for batch in batches:
            self._indices.append(batch["index"])
            yield {name: batch[name] for name in names}

    def after_step(self, done: int, values: dict[str, jax.Array]) -> int:
        """Pops `finite` from the values of the step just started.

        Returns:
          `signal`.

        Raises:
          NotFinite: the previous step was not.
        """
        vote = self._any_host(self._request.signal) if self._any_host else None
        self._unread.append((done, values.pop("finite"), values, self._indices.popleft(), vote))
        self._read(1)
        return self.signal

    @property
    def signal(self) -> int:
        """The signal to stop, or 0; the same on every host after the same step."""
        return self._signal if self._any_host else self._request.signal

    def last_signal(self) -> int:
        """`signal`, including one after the last step; all hosts must call this together."""
        if self._any_host and not self._signal:
            self._signal = int(self._any_host(self._request.signal))
        return self.signal

    def check(self) -> None:
        """Raises Stopped if a signal came, to abort a measurement.

        Never raises with several hosts: one cannot leave what the others take part in.
        """
        if not self._any_host:
            self._request.check()

    def settle(self) -> None:
        """Checks the last step as well, before its state is measured or saved.

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

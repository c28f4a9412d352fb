"""Sends a training run's metrics and pictures to an experiment tracker, each exactly once.

`metrics.jsonl` loses the records after the step that training resumes from, and a tracker cannot
take back what it has. So a record is sent only once a checkpoint covers its step. At the next start
the tracker is given the whole `metrics.jsonl` again, and skips what it has (`TrackedRun.send`).
`tracker.json` holds the name under which the tracked run is found again; that a run is finished and
has sent everything is also noted there, but only after the tracker has confirmed it.

Nothing here stops or stalls training: the tracker works in a thread of its own, and its first error
ends tracking for this start.
"""

import contextlib
import functools
import json
import operator
import queue
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from gsjax.errors import UserError
from gsjax.runtime import files, metrics
from gsjax.runtime.scalar_writer import ScalarWriter
from gsjax.trackers import TRACKERS
from gsjax.trackers.tracked_run import Record, TrackedRun

FILE = "tracker.json"
# Seconds to wait for the tracker at the end; after a signal, the process may soon be killed.
_WAIT, _WAIT_STOPPED = 60.0, 10.0
_LONGEST_REASON = 200  # characters


class Tracker(ScalarWriter):
    """Sends scalars and images to a tracker in the background; ignores the rest."""

    def __init__(self, name: str, workdir: epath.Path, restored_step: int) -> None:
        """Connects in the background; earlier records are read from `metrics.jsonl`.

        Args:
          name: row of `TRACKERS`.
          workdir: folder of the run. Its `config.json` is sent, and after a restart its pictures.
          restored_step: step that training resumes from; `metrics.jsonl` ends there.
        """
        self._name, self._workdir = name, workdir
        self._saved_step = restored_step
        self._uncovered: deque[Record] = deque()  # records of steps without a checkpoint
        self._tasks: queue.SimpleQueue[Callable[[TrackedRun], None] | None] = queue.SimpleQueue()
        self._num_records = 0  # sent, or about to be
        self._complete = self._off = False
        if restored_step:
            for file in files.with_suffix(workdir, ".png"):
                self._tasks.put(functools.partial(_send_again, file))
        self._send(metrics.read_records(workdir))
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        if not self._off:
            self._uncovered.append(metrics.as_record(step, scalars))
            self.saved(self._saved_step)

    def saved(self, step: int) -> None:
        """Sends the metrics up to `step`, whose checkpoint is complete."""
        self._saved_step = step
        ready = []
        while self._uncovered and self._uncovered[0]["step"] <= step:
            ready.append(self._uncovered.popleft())
        self._send(ready)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        del step  # pictures are of the whole run
        for name, batch in images.items():
            picture = np.asarray(batch)[0]
            self._tasks.put(operator.methodcaller("send_picture", name, picture))

    def flush(self) -> None:
        """Does nothing: whatever a checkpoint covers is already on its way."""

    def mark_complete(self) -> None:
        """Says that there are no more steps to train; call it before `close`."""
        self._complete = True

    def close(self) -> None:
        """Waits for the tracker, but not forever."""
        self._tasks.put(None)
        seconds = _WAIT if self._complete else _WAIT_STOPPED
        self._thread.join(seconds)
        if self._thread.is_alive() and not self._off:
            self._off = True
            metrics.log(
                f"warning: log.tracker={self._name} is still sending after {seconds:.0f} s: "
                "rerun the same command to send the rest"
            )

    def _send(self, records: Sequence[Record]) -> None:
        if records:
            self._num_records += len(records)
            self._tasks.put(operator.methodcaller("send", records))

    def _work(self) -> None:
        """The thread: connects, then sends whatever is queued until `close`."""
        run: TrackedRun | None = None
        try:
            config = json.loads((self._workdir / "config.json").read_text())["config"]
            create = TRACKERS[self._name].load()
            run = create(self._workdir, _identify(self._workdir), config)
            metrics.log(f"tracker  {self._name}: {run.where}")
            for task in iter(self._tasks.get, None):
                task(run)
            run.finish(self._complete)
            _note_sent(self._workdir, self._name, self._num_records)
        except Exception as error:  # whatever goes wrong in someone else's library
            self._give_up(error)
            if run:
                with contextlib.suppress(Exception):
                    run.abandon()

    def _give_up(self, error: Exception) -> None:
        if self._off:
            return
        self._off = True
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:_LONGEST_REASON]
        metrics.log(
            f"warning: log.tracker={self._name} is off until the next start, which sends what is "
            f"missing: {reason}"
        )


def _send_again(file: epath.Path, run: TrackedRun) -> None:
    """Sends a picture that an earlier start has left in the work directory, if it is missing."""
    name = file.name.removesuffix(".png")
    if not run.has_picture(name):
        with file.open("rb") as content:
            run.send_picture(name, np.asarray(Image.open(content).convert("RGB")))


def is_behind(name: str, workdir: epath.Path) -> bool:
    """Whether `metrics.jsonl` has records of which a tracker has not confirmed that it has them."""
    if name == "none":
        return False
    try:
        sent = _read(workdir).get("sent", {}).get(name, 0)
    except UserError:  # the tracker will report it
        return True
    return sent < len(metrics.read_records(workdir))


def _identify(workdir: epath.Path) -> str:
    """Returns the ID of the tracked run, the same at every start."""
    content = _read(workdir)
    if "id" not in content:
        content["id"] = uuid.uuid4().hex[:8]
        files.write_text(workdir / FILE, json.dumps(content) + "\n")
    return content["id"]


def _note_sent(workdir: epath.Path, name: str, num_records: int) -> None:
    content = _read(workdir)
    content["sent"] = content.get("sent", {}) | {name: num_records}
    files.write_text(workdir / FILE, json.dumps(content) + "\n")


def _read(workdir: epath.Path) -> dict[str, Any]:
    """Returns `id` and, by tracker, `sent`: the number of records confirmed; {} at first.

    Raises:
      UserError: the file is damaged.
    """
    file = workdir / FILE
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text())
        if not (isinstance(content["id"], str) and isinstance(content.get("sent", {}), dict)):
            raise ValueError("not an ID and counts")
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: delete it to begin a new tracked run") from error

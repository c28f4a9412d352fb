"""Metric writers, built on CLU: TensorBoard event files, `metrics.jsonl`, experiment trackers."""

from gsjax.runtime.tensorflow_setup import metric_writers  # CLU imports TensorFlow

# isort: split
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from clu.metric_writers import MetricWriter
from etils import epath

from gsjax.runtime import event_files, files, metrics, parallel
from gsjax.runtime.scalar_writer import ScalarWriter
from gsjax.trackers.tracker import Tracker

KEEP_ALL = sys.maxsize  # as `restored_step`: keeps all existing records


class JsonLines(ScalarWriter):
    """Writes scalars to `metrics.jsonl`, one object with `step` per call; ignores the rest."""

    def __init__(self, workdir: epath.Path, restored_step: int) -> None:
        """Drops what an interrupted run wrote after the step that training resumes from."""
        records = metrics.read_records(workdir) if restored_step else []
        metrics.rewrite(workdir, [record for record in records if record["step"] <= restored_step])
        with contextlib.ExitStack() as stack:  # a bucket's file is only a context manager
            self._file = stack.enter_context((workdir / metrics.FILE).open("a"))
            self._closing = stack.pop_all()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(metrics.as_record(step, scalars)) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._closing.close()


class RunWriter(metric_writers.MultiWriter):
    """Several writers as one; write errors become UserErrors."""

    def __init__(
        self, workdir: epath.Path, writers: Sequence[MetricWriter], tracker: Tracker | None = None
    ) -> None:
        super().__init__([*writers, tracker] if tracker else writers)
        self._workdir, self._tracker = workdir, tracker

    def saved(self, step: int) -> None:
        """Releases the metrics up to `step` to the tracker; call it after each checkpoint."""
        if self._tracker:
            self._tracker.saved(step)

    def mark_complete(self) -> None:
        """Says that there are no more steps to train; call it before `close`."""
        if self._tracker:
            self._tracker.mark_complete()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        with files.write_errors(self._workdir):
            super().write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        with files.write_errors(self._workdir):
            super().write_images(step, images)

    def flush(self) -> None:
        with files.write_errors(self._workdir):
            super().flush()

    def close(self) -> None:
        with files.write_errors(self._workdir):
            super().close()


def create_writer(workdir: epath.Path, restored_step: int, tracker: str = "none") -> RunWriter:
    """Returns a run's metric writer; on hosts other than the primary, it writes nothing.

    Args:
      workdir: folder of the run, which must exist.
      restored_step: records of later steps are removed from its files; 0 removes all.
      tracker: experiment tracker that receives a copy, a row of `gsjax.trackers.TRACKERS` or none.

    Raises:
      UserError: the folder is not writable.
    """
    if not parallel.is_primary():
        return RunWriter(workdir, [])
    with files.write_errors(workdir):
        if restored_step != KEEP_ALL:  # otherwise every event file would be read for nothing
            event_files.forget(workdir, lambda step, _: not restored_step or step > restored_step)
        board = metric_writers.SummaryWriter(workdir.as_posix())
        writers = [board, JsonLines(workdir, restored_step)]
    tracked = None if tracker == "none" else Tracker(tracker, workdir, restored_step)
    return RunWriter(workdir, writers, tracked)

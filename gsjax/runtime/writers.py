"""Metric writers, built on CLU: TensorBoard event files and `metrics.jsonl`."""

from gsjax.runtime.tensorflow_setup import metric_writers  # CLU imports TensorFlow

# isort: split
import contextlib
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from clu.metric_writers import MetricWriter
from etils import epath

from gsjax.runtime import event_files, files, metrics, parallel

KEEP_ALL = sys.maxsize  # as `restored_step`: keeps all existing records


class JsonLines(MetricWriter):
    """Writes scalars to `metrics.jsonl`, one object with `step` per call; ignores the rest."""

    def __init__(self, workdir: epath.Path, restored_step: int) -> None:
        """Drops what an interrupted run wrote after the step that training resumes from."""
        records = metrics.read_records(workdir) if restored_step else []
        metrics.rewrite(workdir, [record for record in records if record["step"] <= restored_step])
        with contextlib.ExitStack() as stack:  # a bucket's file is only a context manager
            self._file = stack.enter_context((workdir / metrics.FILE).open("a"))
            self._closing = stack.pop_all()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        record: dict[str, float | None] = {"step": step}
        for name, value in scalars.items():
            number = float(np.asarray(value))
            record[name] = number if math.isfinite(number) else None  # JSON has no NaN
        self._file.write(json.dumps(record) + "\n")

    def write_summaries(self, step, values, metadata=None):
        """Ignored."""

    def write_images(self, step, images):
        """Ignored."""

    def write_videos(self, step, videos):
        """Ignored."""

    def write_audios(self, step, audios, *, sample_rate):
        """Ignored."""

    def write_texts(self, step, texts):
        """Ignored."""

    def write_histograms(self, step, arrays, num_buckets=None):
        """Ignored."""

    def write_pointcloud(self, step, point_clouds, *, point_colors=None, configs=None):
        """Ignored."""

    def write_hparams(self, hparams):
        """Ignored: the work directory's config.json has them."""

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._closing.close()


class _Writer(metric_writers.MultiWriter):
    """TensorBoard and `metrics.jsonl`; write errors become UserErrors."""

    def __init__(self, workdir: epath.Path, restored_step: int) -> None:
        self._workdir = workdir
        with files.write_errors(self._workdir):
            if restored_step != KEEP_ALL:  # otherwise every event file would be read for nothing
                event_files.forget(
                    workdir, lambda step, _: not restored_step or step > restored_step
                )
            board = metric_writers.SummaryWriter(workdir.as_posix())
            super().__init__([board, JsonLines(workdir, restored_step)])

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


def create_writer(workdir: epath.Path, restored_step: int) -> MetricWriter:
    """Returns a run's metric writer; on hosts other than the primary, it writes nothing.

    Args:
      workdir: folder of the run, which must exist.
      restored_step: records of later steps are removed from its files; 0 removes all.

    Raises:
      UserError: the folder is not writable.
    """
    if not parallel.is_primary():
        return metric_writers.MultiWriter([])
    return _Writer(workdir, restored_step)

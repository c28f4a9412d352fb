"""Where metrics go: TensorBoard and `metrics.jsonl` through CLU, and the terminal's progress."""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from clu import metric_writers
from etils import epath
from tqdm import tqdm

from gsjax import files, parallel
from gsjax.errors import UserError

KEEP_ALL = sys.maxsize  # as `restored_step`: nothing that is there is cut
_FILE = "metrics.jsonl"


def read_records(workdir: epath.Path) -> list[dict[str, Any]]:
    """Returns the objects of `metrics.jsonl`, each with its `step`.

    A line without its end, which a disk that was full may have torn, is left out.

    Raises:
      UserError: a line in it is no such object.
    """
    file = workdir / _FILE
    try:
        text = file.read_text() if file.exists() else ""
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is damaged: move it away") from error
    records = []
    whole = (line for line in text.splitlines() if line.endswith("}"))
    for number, line in enumerate(whole, 1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise ValueError("the step is no whole number")
            if not all(isinstance(value, int | float | None) for value in record.values()):
                raise ValueError("a metric is no number")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}, line {number} is damaged: take it out") from error
        records.append(record)
    return records


def forget(workdir: epath.Path, step: int, names: set[str]) -> None:
    """Takes the metrics `names` of a step out of `metrics.jsonl`, because they come anew."""
    if not parallel.is_primary():
        return
    kept = []
    for record in read_records(workdir):
        if record["step"] == step:
            record = {name: value for name, value in record.items() if name not in names}
        if len(record) > 1:
            kept.append(record)
    _rewrite(workdir, kept)


def sync(workdir: epath.Path) -> None:
    """Waits until what was flushed to `metrics.jsonl` has reached the disk."""
    if (workdir / _FILE).exists():
        files.sync(workdir / _FILE)


def _rewrite(workdir: epath.Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Makes `metrics.jsonl` hold just these, at once."""
    file = workdir / _FILE
    text = "".join(json.dumps(record) + "\n" for record in records)
    if file.exists() and file.read_bytes() != text.encode():
        files.write_text(file, text)


class JsonLines(metric_writers.MetricWriter):
    """Writes scalars to `metrics.jsonl`, an object per call with `step`; leaves out the rest."""

    def __init__(self, workdir: epath.Path, restored_step: int) -> None:
        """Cuts what an interrupted run wrote after the step that training goes on from."""
        records = read_records(workdir) if restored_step else []
        _rewrite(workdir, [record for record in records if record["step"] <= restored_step])
        with contextlib.ExitStack() as stack:  # all that a bucket's file has is its context
            self._file = stack.enter_context((workdir / _FILE).open("a"))
            self._closing = stack.pop_all()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        record: dict[str, float | None] = {"step": step}
        for name, value in scalars.items():
            number = float(np.asarray(value))
            record[name] = number if math.isfinite(number) else None  # JSON has no NaN
        self._file.write(json.dumps(record) + "\n")

    def write_summaries(self, step, values, metadata=None):
        """Not kept as text."""

    def write_images(self, step, images):
        """Not kept as text."""

    def write_videos(self, step, videos):
        """Not kept as text."""

    def write_audios(self, step, audios, *, sample_rate):
        """Not kept as text."""

    def write_texts(self, step, texts):
        """Not kept as text."""

    def write_histograms(self, step, arrays, num_buckets=None):
        """Not kept as text."""

    def write_pointcloud(self, step, point_clouds, *, point_colors=None, configs=None):
        """Not kept as text."""

    def write_hparams(self, hparams):
        """The work directory's config.json has them."""

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._closing.close()


class _Writer(metric_writers.MultiWriter):
    """TensorBoard and `metrics.jsonl`; a disk that cannot be written is told in one line."""

    def __init__(self, workdir: epath.Path, restored_step: int) -> None:
        self._workdir = workdir
        with files.told(self._workdir):
            board = metric_writers.SummaryWriter(workdir.as_posix())
            super().__init__([board, JsonLines(workdir, restored_step)])

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        with files.told(self._workdir):
            super().write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        with files.told(self._workdir):
            super().write_images(step, images)

    def flush(self) -> None:
        with files.told(self._workdir):
            super().flush()

    def close(self) -> None:
        with files.told(self._workdir):
            super().close()


def create_writer(workdir: epath.Path, restored_step: int) -> metric_writers.MetricWriter:
    """Returns the writer of a run; on other hosts than the first it writes nothing."""
    if not parallel.is_primary():
        return metric_writers.MultiWriter([])
    return _Writer(workdir, restored_step)


def say(line: str) -> None:
    """Prints a line on the first host, above a live progress line.

    Where nothing can be printed (`| head`, a log on a full disk), the work goes on in silence.
    """
    if not parallel.is_primary():
        return
    try:
        tqdm.write(line)
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """One live line with ETA on a terminal, a plain line now and then elsewhere."""

    _SECONDS_BETWEEN_LINES = 15.0

    def __init__(self, label: str, total: int, start: int = 0, inner: bool = False) -> None:
        """Begins at `start` of `total`; an `inner` one leaves nothing behind when it ends."""
        self._inner = inner
        self._label, self._total, self._done = label, total, start
        self._live = sys.stdout.isatty()
        self._said = time.monotonic()
        self._first: tuple[int, float] | None = None  # what is before the first update compiles
        self._bar = tqdm(
            desc=label,
            total=total,
            initial=start,
            file=sys.stdout,
            ncols=shutil.get_terminal_size().columns,
            leave=not inner,
            disable=not (self._live and parallel.is_primary()),
        )
        self._text = ""

    def describe(self, text: str) -> None:
        """Sets the figures that the line shows."""
        self._text = text
        self._bar.set_postfix_str(text, refresh=False)

    def update(self, done: int) -> None:
        """Shows that `done` of the total are done."""
        self._bar.update(done - self._done)
        self._done = done
        now = time.monotonic()
        self._first = self._first or (done, now)
        due = now - self._said > self._SECONDS_BETWEEN_LINES
        if self._live or not (due or (done == self._total and not self._inner)):
            return
        self._said = now
        line = f"{self._label} {done}/{self._total}  {self._text}"
        if done > self._first[0] and done < self._total:
            left = (now - self._first[1]) / (done - self._first[0]) * (self._total - done)
            line += f"  {tqdm.format_interval(left)} left"
        say(line.rstrip())

    def close(self) -> None:
        """Ends the live line."""
        self._bar.close()


def device_line() -> str:
    """Describes the devices and hosts of the run."""
    devices = jax.devices()
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}){hosts}"

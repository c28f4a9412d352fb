"""A run's metrics in `metrics.jsonl`, and its terminal output."""

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
from etils import epath
from tqdm import tqdm

from gsjax.errors import UserError
from gsjax.runtime import event_files, files, output, parallel

FILE = "metrics.jsonl"


def read_records(workdir: epath.Path) -> list[dict[str, Any]]:
    """Returns the records of `metrics.jsonl`, each with its `step`.

    Skips truncated lines, which a full disk may leave behind.

    Raises:
      UserError: the file is not text, or a line is not a valid record.
    """
    file = workdir / FILE
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
                raise ValueError("the step is not an integer")
            if not all(isinstance(value, int | float | None) for value in record.values()):
                raise ValueError("a metric is not a number")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}, line {number} is damaged: delete the line") from error
        records.append(record)
    return records


def as_record(step: int, scalars: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the record of a step's metrics; JSON has no NaN, so non-finite values are None."""
    record: dict[str, float | None] = {"step": step}
    for name, value in scalars.items():
        number = float(np.asarray(value))
        record[name] = number if math.isfinite(number) else None
    return record


def forget(workdir: epath.Path, step: int, names: set[str]) -> None:
    """Removes the metrics `names` of a step from the files, because they will be rewritten."""
    if not parallel.is_primary():
        return
    kept = []
    for record in read_records(workdir):
        if record["step"] == step:
            record = {name: value for name, value in record.items() if name not in names}
        if len(record) > 1:
            kept.append(record)
    rewrite(workdir, kept)
    event_files.forget(workdir, lambda at, name: at == step and name in names)


def sync(workdir: epath.Path) -> None:
    """Syncs what was flushed to `metrics.jsonl` to disk."""
    if (workdir / FILE).exists():
        files.sync(workdir / FILE)


def rewrite(workdir: epath.Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Atomically replaces the content of `metrics.jsonl` with these records."""
    file = workdir / FILE
    text = "".join(json.dumps(record) + "\n" for record in records)
    if file.exists() and file.read_bytes() != text.encode():
        files.write_text(file, text)


def log(line: str) -> None:
    """Prints a line on the primary host, above any live progress line.

    Line breaks and control characters, as in a path, are escaped. Output that cannot be written
    (`| head`, a log on a full disk) is silently dropped.
    """
    if not parallel.is_primary() or sys.stdout is None:
        return
    line = output.escaped(line)
    try:
        try:
            tqdm.write(line)
        except UnicodeEncodeError as error:  # a file name that this encoding lacks
            tqdm.write(line.encode(error.encoding, "backslashreplace").decode(error.encoding))
        sys.stdout.flush()
    except ValueError:
        pass  # closed
    except OSError:  # in a program that did not call output.guard
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


class Progress:
    """A live progress line with ETA on a terminal; elsewhere, a plain line now and then."""

    _SECONDS_BETWEEN_LINES = 15.0

    def __init__(self, label: str, total: int, start: int = 0, inner: bool = False) -> None:
        """Starts at `start` of `total`; an `inner` one leaves no output behind when it ends."""
        self._inner = inner
        self._label, self._total, self._done = label, total, start
        self._live = output.is_terminal()
        self._last_line = time.monotonic()
        self._first: tuple[int, float] | None = None  # time before the first update is compilation
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
        """Sets the text shown after the count."""
        self._text = text
        self._bar.set_postfix_str(text, refresh=False)

    def update(self, done: int) -> None:
        """Reports that `done` of the total are done."""
        self._bar.update(done - self._done)
        self._done = done
        now = time.monotonic()
        self._first = self._first or (done, now)
        due = now - self._last_line > self._SECONDS_BETWEEN_LINES
        if self._live or not (due or (done == self._total and not self._inner)):
            return
        self._last_line = now
        line = f"{self._label} {done}/{self._total}  {self._text}"
        if done > self._first[0] and done < self._total:
            left = (now - self._first[1]) / (done - self._first[0]) * (self._total - done)
            line += f"  {tqdm.format_interval(left)} left"
        log(line.rstrip())

    def close(self) -> None:
        """Ends the live line."""
        self._bar.close()


def device_line() -> str:
    """Describes the devices and hosts of the run."""
    devices = jax.devices()
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}){hosts}"

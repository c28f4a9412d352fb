"""A run in Weights & Biases.

The server, project and mode come from W&B's own environment variables; without WANDB_PROJECT, the
project is `gsjax`.

Each record of `metrics.jsonl` is one row of the run's history. Its position is W&B's own step; the
number of steps trained is `step`, the axis of the charts. The server takes rows in order, so a
resumed run begins with the row after the last one there. An offline run cannot be continued: every
start writes a new one with the same ID and all rows, which replaces the former ones.
"""

import math
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import wandb
from etils import epath

from gsjax.runtime import files
from gsjax.trackers.tracked_run import Record

_WAIT = 30.0  # seconds for the upload at the end, also if the process exits earlier


class WandbRun:
    """A W&B run, new or continued."""

    def __init__(self, workdir: epath.Path, run_id: str, config: Mapping[str, Any]) -> None:
        """Opens the run; W&B itself gives up after 90 seconds (WANDB_INIT_TIMEOUT)."""
        mode = wandb.setup().settings.mode
        # Asking for a key would wait for the terminal.
        if mode not in ("offline", "disabled") and not wandb.login(prompt=False):
            raise RuntimeError("no API key: run `wandb login`, or set WANDB_MODE=offline")
        keep_in = None if "WANDB_DIR" in os.environ or files.is_remote(workdir) else workdir
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "gsjax"),
            name=os.environ.get("WANDB_NAME", workdir.name),
            id=run_id,
            resume=None if mode == "offline" else "allow",
            reinit="create_new",  # leaves a run of the calling program alone
            dir=keep_in and keep_in.as_posix(),
            settings=wandb.Settings(
                console="off", silent=True, finish_timeout=_WAIT, finish_timeout_raises=True
            ),
        )
        self._id = run_id
        self._folder = pathlib.Path(self._run.sync_dir)
        self.where = self._folder.as_posix() if self._run.offline else self._run.url or mode
        self._num_passed, self._num_had = 0, self._run.step
        self._run.config.update(dict(config), allow_val_change=True)
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def send(self, records: Sequence[Record]) -> None:
        """Logs the rows after those that the server has."""
        for record in records:
            if self._num_passed >= self._num_had:
                row = {key: math.nan if value is None else value for key, value in record.items()}
                self._run.log(row, step=self._num_passed, commit=True)
            self._num_passed += 1

    def has_picture(self, name: str) -> bool:
        """Whether the server has rows: the pictures came with the first one."""
        del name
        return self._num_had > 0

    def send_picture(self, name: str, picture: np.ndarray) -> None:
        """Adds the picture to the next row."""
        step = max(self._num_passed, self._num_had)
        self._run.log({name: wandb.Image(picture)}, step=step, commit=False)

    def finish(self, complete: bool) -> None:
        """Uploads the rest, then deletes the offline runs that this one replaces."""
        self._run.finish(exit_code=0 if complete else 1)
        for folder in self._folder.parent.glob(f"offline-run-*-{self._id}*"):
            if folder != self._folder:
                shutil.rmtree(folder)

    def abandon(self) -> None:
        """Ends W&B's own process now, rather than when Python exits, which would report errors."""
        if wandb.run is None:  # the calling program has no run in it
            wandb.teardown(exit_code=1)

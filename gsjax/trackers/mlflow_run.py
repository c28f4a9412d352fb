"""A run in MLflow.

The server or folder and the experiment come from MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME (or
MLFLOW_EXPERIMENT_ID); without them, the folder is `mlruns` in the work directory and the experiment
is `gsjax`. The tracked run is found by its tag `gsjax.id`, and what it has by the steps of each of
its metrics.
"""

import math
import os
import pathlib
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from gsjax.config import settings
from gsjax.errors import UserError
from gsjax.runtime import files
from gsjax.trackers.tracked_run import Record

_TAG = "gsjax.id"
_LONGEST_PARAM = 6000  # characters; MLflow's limits
_MAX_PARAMS, _MAX_METRICS = 100, 1000  # per request


def _remove_torn_runs(folder: pathlib.Path) -> None:
    """Removes what a start that was killed while MLflow created its run has left of it.

    MLflow cannot list the runs of an experiment if one has an empty `meta.yaml`, and a run without
    our tag, which MLflow writes next, would never be found again.
    """
    for run in folder.glob("*/*"):
        if re.fullmatch("[0-9a-f]{32}", run.name):
            written = {f.name for f in run.rglob("*") if f.is_file() and f.stat().st_size}
            if written <= {"meta.yaml"}:
                shutil.rmtree(run)


class MlflowRun:
    """An MLflow run, new or continued."""

    def __init__(self, workdir: epath.Path, run_id: str, config: Mapping[str, Any]) -> None:
        """Opens the run and sends the settings."""
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            if files.is_remote(workdir):
                raise UserError(f"MLflow cannot keep runs in {workdir}: set MLFLOW_TRACKING_URI")
            uri = (workdir / "mlruns").as_posix()
            _remove_torn_runs(pathlib.Path(uri))
        # Without it, MLflow refuses folders, which no longer get new features.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        self._client = MlflowClient(uri)
        run = self._find(run_id) or self._create(run_id, workdir.name)
        self._id = run.info.run_id
        page = f"/#/experiments/{self._experiment}/runs/{self._id}"
        self.where = uri.rstrip("/") + page if uri.startswith("http") else uri
        self._client.update_run(self._id, status="RUNNING")
        self._send_settings(config, run.data.params)
        self._steps = {
            name: {metric.step for metric in self._client.get_metric_history(self._id, name)}
            for name in run.data.metrics
        }
        self._pictures = {file.path for file in self._client.list_artifacts(self._id)}

    def _find(self, run_id: str) -> Run | None:
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or self._find_experiment()
        found = self._client.search_runs([self._experiment], f"tags.`{_TAG}` = '{run_id}'")
        return found[0] if found else None

    def _find_experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "gsjax"
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:  # another run has just created it
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return experiment.experiment_id

    def _create(self, run_id: str, name: str) -> Run:
        return self._client.create_run(self._experiment, run_name=name, tags={_TAG: run_id})

    def _send_settings(self, config: Mapping[str, Any], sent: Mapping[str, str]) -> None:
        """Sends the settings as parameters, which are final, and those of this start as a file."""
        new = [
            Param(key, str(value)[:_LONGEST_PARAM])
            for key, value in settings.flatten(config).items()
            if key not in sent
        ]
        for begin in range(0, len(new), _MAX_PARAMS):
            params = new[begin : begin + _MAX_PARAMS]
            self._client.log_batch(self._id, params=params, synchronous=True)
        self._client.log_dict(self._id, dict(config), "config.json")

    def send(self, records: Sequence[Record]) -> None:
        """Logs the metrics whose step MLflow does not have."""
        now = int(1000 * time.time())
        new = [
            Metric(name, math.nan if value is None else value, now, record["step"])
            for record in records
            for name, value in record.items()
            if name != "step" and record["step"] not in self._steps.get(name, ())
        ]
        for begin in range(0, len(new), _MAX_METRICS):
            batch = new[begin : begin + _MAX_METRICS]
            self._client.log_batch(self._id, metrics=batch, synchronous=True)

    def has_picture(self, name: str) -> bool:
        """Whether the run has it."""
        return f"{name}.png" in self._pictures

    def send_picture(self, name: str, picture: np.ndarray) -> None:
        """Writes or replaces the picture among the run's artifacts."""
        self._client.log_image(self._id, picture, f"{name}.png")

    def finish(self, complete: bool) -> None:
        """Sets the run's status: finished, or killed."""
        self._client.set_terminated(self._id, "FINISHED" if complete else "KILLED")

    def abandon(self) -> None:
        """Does nothing: there is no connection to close."""

"""Experiment trackers, which receive a copy of a run's metrics; the table of them.

Importing it loads neither a tracker's package nor JAX. A tracker is a function (workdir, run_id,
config) -> `gsjax.trackers.tracked_run.TrackedRun`.
"""

import functools
import importlib.util
from collections.abc import Iterator

import ml_collections

from gsjax.config.schema import Row


def _check_installed(package: str, config: ml_collections.ConfigDict) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # without an origin, only a folder of that name
        yield (
            f"log.tracker={config.log.tracker} needs more packages: "
            f"pip install 'gsjax[{config.log.tracker}]', or set it to none"
        )


TRACKERS: dict[str, Row] = {
    "wandb": Row(
        "gsjax.trackers.wandb_run",
        "Weights & Biases, online or offline",
        check=functools.partial(_check_installed, "wandb"),
        function="WandbRun",
    ),
    "mlflow": Row(
        "gsjax.trackers.mlflow_run",
        "MLflow, with a server or a local folder",
        check=functools.partial(_check_installed, "mlflow"),
        function="MlflowRun",
    ),
}

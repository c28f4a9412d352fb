"""The jobs that `python -m gsjax.main --job NAME` can run."""

import importlib
from collections.abc import Callable
from typing import Literal, NamedTuple


class Job(NamedTuple):
    """One line of help, where the function is, and what configures it.

    A function takes (config, workdir). What shapes the encoder comes from the config `file`, or,
    for an evaluation, from the work directory of the `run`. That of a `sweep` takes (plan, workdir,
    arguments).
    """

    help: str
    module: str
    function: str = "run"
    configured_by: Literal["file", "run", "sweep"] = "run"

    def load(self, function: str = "") -> Callable:
        """Imports the job's module, and with it JAX and TensorFlow; returns its function."""
        return getattr(importlib.import_module(self.module), function or self.function)


JOBS = {
    "pretrain": Job(
        "train an encoder on images without labels", "gsjax.train.pretrain", "pretrain", "file"
    ),
    "knn": Job("classify by nearest neighbours", "gsjax.evaluate.knn"),
    "linear": Job("train a linear classifier on the frozen encoder", "gsjax.evaluate.linear"),
    "transfer": Job("logistic regression on other data sets", "gsjax.evaluate.transfer"),
    "retrieval": Job("rank pictures by similarity to queries", "gsjax.evaluate.retrieval"),
    "diagnostics": Job(
        "distances of views by overlap, nearest neighbours, map", "gsjax.evaluate.diagnostics"
    ),
    "features": Job("write representations of pictures to a file", "gsjax.evaluate.export"),
    "sweep": Job(
        "train and evaluate the members of a sweep", "gsjax.sweep.runner", "run_all", "sweep"
    ),
    "report": Job("draw tables and figures of runs", "gsjax.report.report", "run", "file"),
}

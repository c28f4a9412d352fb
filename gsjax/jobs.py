"""The jobs that `python -m gsjax.main --job NAME` can run."""

import importlib
from collections.abc import Callable
from typing import NamedTuple


class Job(NamedTuple):
    """One line of help, and where the function (config, workdir) -> None is.

    An evaluation takes what shapes the encoder from the work directory, not from the config.
    """

    help: str
    module: str
    function: str = "run"
    is_evaluation: bool = True

    def load(self) -> Callable:
        """Imports the job's module, and with it JAX and TensorFlow."""
        return getattr(importlib.import_module(self.module), self.function)


JOBS = {
    "pretrain": Job(
        "train an encoder on images without labels", "gsjax.pretrain", "pretrain", False
    ),
    "knn": Job("classify by nearest neighbours", "gsjax.evaluate.knn"),
    "linear": Job("train a linear classifier on the frozen encoder", "gsjax.evaluate.linear"),
    "transfer": Job("logistic regression on other data sets", "gsjax.evaluate.transfer"),
    "retrieval": Job("rank pictures by similarity to queries", "gsjax.evaluate.retrieval"),
    "features": Job("write representations of pictures to a file", "gsjax.evaluate.export"),
}

"""The jobs that `python -m gsjax.main --job NAME` can run."""

import importlib
from collections.abc import Callable
from typing import NamedTuple


class Job(NamedTuple):
    """One line of help, and where the function (config, workdir) -> None is."""

    help: str
    module: str
    function: str

    def load(self) -> Callable:
        """Imports the job's module, and with it JAX and TensorFlow."""
        return getattr(importlib.import_module(self.module), self.function)


JOBS = {
    "pretrain": Job("train an encoder on images without labels", "gsjax.pretrain", "pretrain"),
}

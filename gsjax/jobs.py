"""The table of jobs that `python -m gsjax.main --job NAME` can run, including evaluations.

Importing it loads neither the jobs nor JAX. A job is a function (config, workdir); that of a sweep,
(plan, workdir, arguments).
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import ml_collections

from gsjax.config.schema import Row, free
from gsjax.methods import METHODS


@dataclasses.dataclass(frozen=True)
class Job(Row):
    """A job.

    Attributes:
      configured_by: where the settings that shape the encoder come from: the config `file`, the
        work directory of the `run` (an evaluation), or those of a `sweep`.
    """

    function: str = "run"
    configured_by: Literal["file", "run", "sweep"] = "run"


_RATES = ", ".join(f"{row.linear_learning_rate:g} ({name})" for name, row in METHODS.items())


def _check_features(config: ml_collections.ConfigDict) -> Iterator[str]:
    if config.features.source == "folder" and not config.features.data_dir:
        yield "features.source is folder; features.data_dir must name the folder"
    if "/" in config.features.name:
        yield f"features.name is {config.features.name!r}; it is a file's name without a folder"
    if config.features.data_dir and not config.features.source:
        yield "features.data_dir is set; say with features.source what it is: folder or a TFDS name"


JOBS: dict[str, Job] = {
    "pretrain": Job(
        "gsjax.train.pretrain",
        "train an encoder on images without labels",
        function="pretrain",
        configured_by="file",
    ),
    "knn": Job("gsjax.evaluate.knn", "classify by nearest neighbors"),
    "linear": Job(
        "gsjax.evaluate.linear",
        "train a linear classifier on the frozen encoder",
        {
            "linear.num_epochs": free(90, "over data.labeled_split", low=1),
            "linear.batch_size": free(256, "over all devices and hosts", low=1),
            "linear.learning_rate": free(0.0, f"per 256 images; 0 for the method's own: {_RATES}"),
            "linear.momentum": free(0.9, "Nesterov's", high=0.9999),
            "linear.min_scale": free(
                0.08, "smallest random crop as a share of the image", low=1e-6, high=1
            ),
            "linear.flip": free(0.5, "probability of a horizontal flip", high=1),
        },
    ),
    "transfer": Job(
        "gsjax.evaluate.transfer",
        "logistic regression on other data sets",
        {
            "transfer.datasets": free(
                "cifar10,cifar100,voc2007,aircraft,cars,flowers,food,pets",
                "names of gsjax/evaluate/datasets.py, other TFDS names, or folders of data_dir "
                "with train/ and test/ that hold a folder a class",
            ),
            "transfer.data_dir": free(
                "", 'TFDS directory (its own default if "") and place of the folders'
            ),
            "transfer.max_examples": free(
                0, "when positive, take a fixed random part of each split"
            ),
            "transfer.max_iterations": free(500, "of L-BFGS for each l2 value", low=1),
            "transfer.memory_gb": free(
                0.0, "for l2 values fitted at once; 0: one by one, from the last two"
            ),
        },
    ),
    "retrieval": Job(
        "gsjax.evaluate.retrieval",
        "rank pictures by similarity to queries",
        {
            "retrieval.datasets": free(
                "roxford5k,rparis6k", "folders of data_dir with gnd_<name>.pkl and jpg/"
            ),
            "retrieval.data_dir": free("", "where they are"),
            "retrieval.protocol": free(
                "thesis",
                "thesis: S x S pixels; aspect: keep the ratio; multiscale: at 3",
                choices=("thesis", "aspect", "multiscale"),
            ),
            "retrieval.image_size": free(
                1024, "longer side in pixels of aspect and multiscale", low=16, high=2**16
            ),
            "retrieval.pictures": free(
                3, "queries whose first ten results are drawn, for each data set"
            ),
        },
    ),
    "diagnostics": Job(
        "gsjax.evaluate.diagnostics",
        "distances of views by overlap, nearest neighbors, map",
        {
            "diagnostics.num_images": free(
                2000, "pictures of data.test_split that are measured and mapped", low=2
            ),
            "diagnostics.neighbors": free(6, "of them whose nearest neighbors are drawn"),
        },
    ),
    "features": Job(
        "gsjax.evaluate.export",
        "write representations of pictures to a file",
        {
            "features.source": free(
                "", 'job features: as data.source; "" for that of the pre-training'
            ),
            "features.data_dir": free("", "its folder"),
            "features.split": free(
                "", 'its split; "" for data.split or, of a folder, all its pictures'
            ),
            "features.name": free("", 'of the file; "" to make one of source and split'),
        },
        _check_features,
    ),
    "sweep": Job(
        "gsjax.sweep.runner",
        "train and evaluate the members of a sweep",
        function="run_all",
        configured_by="sweep",
    ),
    "report": Job(
        "gsjax.report.report",
        "draw tables and figures of runs",
        {
            "report.runs": free(
                "", "folders of further runs and sweeps, beside those under --workdir"
            ),
            "report.diagnostics": free(
                True, "run the job diagnostics on checkpoints that have none"
            ),
        },
        configured_by="file",
    ),
}

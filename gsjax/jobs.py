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
      records: whether the job of a run writes `results/<job>.json`.
    """

    function: str = "run"
    configured_by: Literal["file", "run", "sweep"] = "run"
    records: bool = True


_MIN_CROP_PCT = 0.1  # images are resized to S / crop_pct
_RATES = ", ".join(f"{row.linear_learning_rate:g} ({name})" for name, row in METHODS.items())


def _check_embed(config: ml_collections.ConfigDict) -> Iterator[str]:
    settings = config.embed
    if settings.source == "folder" and not settings.data_dir:
        yield "embed.source is folder; set embed.data_dir to its path"
    if settings.source == "list" and not settings.split:
        yield "embed.source is list; set embed.split to a text file with a path on each line"
    if "/" in settings.name or settings.name.startswith("."):
        yield f"embed.name is {settings.name!r}; it must be a file name without a folder"
    if settings.data_dir and not settings.source:
        yield "embed.data_dir is set; set embed.source too, to folder, list or a TFDS name"
    if 0 < config.features.crop_pct < _MIN_CROP_PCT:
        yield f"features.crop_pct is {config.features.crop_pct:g}; it must be 0 or at least 0.1"


def _check_export(config: ml_collections.ConfigDict) -> Iterator[str]:
    if config.export.finetuned and config.export.detectron2:
        yield "export.detectron2 is for encoders without a head; omit it or export.finetuned"


def _check_finetune(config: ml_collections.ConfigDict) -> Iterator[str]:
    if config.finetune.label_file and config.finetune.fraction != 1:
        yield "finetune.label_file and finetune.fraction both choose labels; omit one of them"


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
            "linear.num_epochs": free(90, "epochs over data.labeled_split", low=1),
            "linear.batch_size": free(256, "images per step over all devices and hosts", low=1),
            "linear.learning_rate": free(
                0.0, f"per 256 images; 0 for the method's default: {_RATES}"
            ),
            "linear.momentum": free(0.9, "Nesterov momentum", high=0.9999),
            "linear.min_scale": free(
                0.08, "smallest random crop as a fraction of the image area", low=1e-6, high=1
            ),
            "linear.flip": free(0.5, "probability of a horizontal flip", high=1),
        },
    ),
    "finetune": Job(
        "gsjax.train.finetune",
        "train the whole network on labeled images",
        {
            "finetune.preset": free(
                "simclr",
                "simclr: batch 4096, 60 epochs at 1 % of the labels, else 30; barlow: batch 256, "
                "20 epochs, a larger rate for the head",
                choices=("simclr", "barlow"),
            ),
            "finetune.fraction": free(
                1.0, "fraction of each class whose labels are used", low=1e-6, high=1
            ),
            "finetune.label_file": free(
                "", "instead, a file with the names of the images whose labels are used"
            ),
            "finetune.num_epochs": free(0, "if positive, replaces the preset's"),
            "finetune.batch_size": free(0, "if positive, replaces the preset's"),
            "finetune.learning_rate": free(
                0.0, "per 256 images; 0 for the preset's: 0.05 (simclr), 0.005 (barlow)"
            ),
            "finetune.head_learning_rate": free(
                0.0, "likewise, of the head; 0: that of the encoder (simclr), 0.5 (barlow)"
            ),
            "finetune.layer_decay": free(
                1.0, "factor of the rate from one layer to the one before it", low=1e-3, high=1
            ),
            "finetune.label_smoothing": free(
                0.0, "share of the target spread evenly over all classes", high=0.999
            ),
            "finetune.weight_decay": free(0.0, "of weights; biases and normalization have none"),
            "finetune.min_scale": free(
                0.08, "smallest random crop as a fraction of the image area", low=1e-6, high=1
            ),
            "finetune.flip": free(0.5, "probability of a horizontal flip", high=1),
            "finetune.every_epochs": free(
                10.0, "epochs between measurements; the end is always measured"
            ),
        },
        _check_finetune,
    ),
    "transfer": Job(
        "gsjax.evaluate.transfer",
        "logistic regression on other data sets",
        {
            "transfer.datasets": free(
                "cifar10,cifar100,voc2007,aircraft,cars,flowers,food,pets",
                "names in gsjax/evaluate/datasets.py, other TFDS names, or folders in "
                "transfer.data_dir with train/ and test/, each with one folder per class",
            ),
            "transfer.data_dir": free(
                "", 'TFDS directory ("" for the TFDS default), also searched for such folders'
            ),
            "transfer.max_examples": free(
                0, "if positive, use a fixed random subset of each split"
            ),
            "transfer.max_iterations": free(500, "L-BFGS iterations per l2 value", low=1),
            "transfer.memory_gb": free(
                0.0, "for fitting l2 values together; 0: one by one, each from the last two"
            ),
        },
    ),
    "retrieval": Job(
        "gsjax.evaluate.retrieval",
        "rank images by similarity to queries",
        {
            "retrieval.datasets": free(
                "roxford5k,rparis6k", "folders in retrieval.data_dir with gnd_<name>.pkl and jpg/"
            ),
            "retrieval.data_dir": free("", "folder that contains them"),
            "retrieval.protocol": free(
                "thesis",
                "thesis: S x S pixels; aspect: keep the aspect ratio; multiscale: that at 3 scales",
                choices=("thesis", "aspect", "multiscale"),
            ),
            "retrieval.image_size": free(
                1024, "longer side in pixels, for aspect and multiscale", low=16, high=2**16
            ),
            "retrieval.pictures": free(3, "queries per data set whose first ten results are drawn"),
        },
    ),
    "diagnostics": Job(
        "gsjax.evaluate.diagnostics",
        "view distances by overlap, nearest neighbors, map",
        {
            "diagnostics.num_images": free(
                2000, "images of data.test_split to measure and map", low=2
            ),
            "diagnostics.neighbors": free(6, "images whose nearest neighbors are drawn"),
        },
    ),
    "embed": Job(
        "gsjax.evaluate.embed",
        "write representations of images to files",
        {
            "embed.source": free("", 'as data.source; "" for the pre-training images'),
            "embed.data_dir": free("", "as data.data_dir, for embed.source"),
            "embed.split": free("", 'split; "" for data.split or, with a folder, all its images'),
            "embed.name": free(
                "", 'name in workdir/embeddings; "" to name them after source and split'
            ),
            "embed.format": free(
                "parquet",
                "parquet: a folder of files, in bounded memory; npz: a file, from memory",
                choices=("parquet", "npz"),
            ),
            "embed.dtype": free(
                "float32", "of the representations", choices=("float32", "float16")
            ),
            "embed.rows_per_file": free(
                16384, "images in a Parquet file, the unit of resuming and of hosts", low=1
            ),
            "embed.flip": free(
                False, "the mean over an image and its mirror image, so that both have the same"
            ),
        },
        _check_embed,
        records=False,
    ),
    "search": Job(
        "gsjax.evaluate.search",
        "find similar images and near duplicates among those of the job embed",
        {
            "search.embeddings": free("", 'name in workdir/embeddings; "" if there is only one'),
            "search.queries": free(
                "", "comma-separated images and folders whose nearest neighbors are sought"
            ),
            "search.neighbors": free(10, "of each query", low=1, high=1000),
            "search.duplicates_above": free(
                0.0, "if positive, groups images with a larger cosine similarity", high=1
            ),
            "search.pictures": free(50, "queries and groups on the contact sheets; 0: no sheets"),
        },
        records=False,
    ),
    "export": Job(
        "gsjax.evaluate.export",
        "write the encoder for torchvision, timm and other programs",
        {
            "export.finetuned": free(
                False, "the fine-tuned network with its head, instead of the encoder"
            ),
            "export.stablehlo": free(False, "also a program for JAX without gsjax"),
            "export.onnx": free(False, "also a program for ONNX runtimes (extra onnx)"),
            "export.detectron2": free(False, "also weights with Detectron2's names"),
            "export.license": free("", "license of the weights, for the model card"),
        },
        _check_export,
        records=False,
    ),
    "sweep": Job(
        "gsjax.sweep.runner",
        "train and evaluate the members of a sweep",
        function="run_all",
        configured_by="sweep",
    ),
    "report": Job(
        "gsjax.report.report",
        "compare runs in tables and figures",
        {
            "report.runs": free("", "more folders with runs or sweeps, in addition to --workdir"),
            "report.diagnostics": free(True, "run the job diagnostics on checkpoints that lack it"),
        },
        configured_by="file",
    ),
}

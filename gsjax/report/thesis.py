"""The numbers printed in the thesis, with their locations, for comparison with ours.

S. Rappange, "Leveraging Graded Similarity in Self-Supervised Learning", University of Twente, 2024.
The bodies of tables 2 and 3 and the points of figures 7 to 12 are images without numbers in its
text: their cells stay empty.
"""

from typing import NamedTuple

METHODS = ("SimCLR", "SimCLR-GS", "SimSiam", "SimSiam-GS")


class Column(NamedTuple):
    """One measurement: its name in the table, and where to find its result.

    `values` are the thesis' numbers in the order of `METHODS`; empty if its text has none.
    """

    label: str
    trained_on: str  # data.source of the pre-training
    job: str
    dataset: str  # that the job is evaluated on
    score: str
    values: tuple[float, ...] = ()


class Table(NamedTuple):
    """A table of the thesis, its location, and the recipe behind its numbers."""

    name: str
    caption: str
    columns: tuple[Column, ...]


def _linear(label: str, source: str, *values: float) -> Column:
    return Column(label, source, "linear", source, "linear/top1", values)


def _transfer(label: str, dataset: str, metric: str) -> Column:
    return Column(label, "imagenet2012", "transfer", dataset, f"transfer/{dataset}_{metric}")


def _retrieval(label: str, dataset: str) -> tuple[Column, ...]:
    return tuple(
        Column(
            f"{label} {sign} {metric}",
            "imagenet2012",
            "retrieval",
            dataset,
            f"retrieval/{difficulty}_{metric}",
        )
        for sign, difficulty in (("E", "easy"), ("M", "medium"))
        for metric in ("mAP", "mP@10")
    )


TABLES = (
    Table(
        "Table 1",
        "Linear evaluation, top-1 in % (thesis, section 6.1): ResNet-18 and 800 epochs on CIFAR-10 "
        "and STL-10, ResNet-50 and 100 epochs on ImageNet, one seed.",
        (
            _linear("CIFAR-10", "cifar10", 86.28, 87.19, 88.71, 89.36),
            _linear("STL-10", "stl10", 87.98, 88.19, 88.57, 88.86),
            _linear("ImageNet", "imagenet2012", 63.60, 63.53, 65.29, 63.18),
        ),
    ),
    Table(
        "Table 2",
        "Transfer learning of the ImageNet encoders, in % (thesis, section 6.2, whose text has no "
        "numbers).",
        (
            _transfer("CIFAR-10", "cifar10", "top1"),
            _transfer("CIFAR-100", "cifar100", "top1"),
            _transfer("VOC2007", "voc2007", "map11"),
            _transfer("Aircraft", "aircraft", "mean_per_class"),
            _transfer("Cars", "cars", "top1"),
            _transfer("Flowers", "flowers", "mean_per_class"),
            _transfer("Food", "food", "top1"),
            _transfer("Pets", "pets", "mean_per_class"),
        ),
    ),
    Table(
        "Table 3",
        "Image retrieval with the ImageNet encoders, in % (thesis, section 6.3, whose text has no "
        "numbers).",
        (*_retrieval("rOxford", "roxford5k"), *_retrieval("rParis", "rparis6k")),
    ),
)

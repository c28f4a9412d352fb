"""The transfer learning data sets: splits, metric and validation rule of each."""

import os
from typing import NamedTuple

import ml_collections
import numpy as np

from gsjax.data import sources
from gsjax.data.paths import exists, is_folder, names_in, read_lines
from gsjax.data.source import Source, check_same_classes, from_files
from gsjax.errors import UserError
from gsjax.runtime.files import shown


class Dataset(NamedTuple):
    """How a data set is used.

    Attributes:
      source: TFDS name; `aircraft` for the official archive of FGVC-Aircraft.
      train: split to fit on.
      validation: official split for choosing l2; "" for a fixed random fifth of `train`.
      test: split to report.
      metric: top1, mean_per_class (mean of the classes' accuracies) or map11 (VOC2007's mean
        11-point average precision).
    """

    source: str
    train: str = "train"
    validation: str = ""
    test: str = "test"
    metric: str = "top1"


# Kornblith et al. 2019 (arXiv:1805.08974), as SimCLR B.8 and Ericsson et al. (ssl-transfer) use it.
DATASETS = {
    "cifar10": Dataset("cifar10"),
    "cifar100": Dataset("cifar100"),
    "voc2007": Dataset("voc/2007", validation="validation", metric="map11"),
    "aircraft": Dataset("aircraft", validation="val", metric="mean_per_class"),
    "cars": Dataset("cars196"),
    "flowers": Dataset("oxford_flowers102", validation="validation", metric="mean_per_class"),
    "food": Dataset("food101", test="validation"),
    "pets": Dataset("oxford_iiit_pet", metric="mean_per_class"),
    "caltech101": Dataset("caltech101", metric="mean_per_class"),
    "dtd": Dataset("dtd", validation="validation"),
    "imagenette": Dataset("imagenette/320px-v2", test="validation"),
}

_AIRCRAFT = "fgvc-aircraft-2013b/data"  # as the archive unpacks
_VALIDATION_FOLDERS = ("validation", "val")


def parse_names(text: str) -> list[str]:
    """Parses a comma-separated list of names.

    Raises:
      UserError: it is empty or has a duplicate.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{text!r} is not a comma-separated list of distinct data sets")
    return names


def find_dataset(name: str, data: ml_collections.ConfigDict, data_dir: str) -> tuple[Dataset, str]:
    """Finds a data set by its folder in data_dir, its name in DATASETS, or its TFDS name.

    A folder `data_dir/<name>` with `train` and `test`, each with one folder per class, takes
    precedence, so it can replace any data set. For a TFDS set not in DATASETS, scores are for
    `test` or, if there is none, `validation`.

    Args:
      name: name of the data set.
      data: the group `data` of a config, for `memory_gb` and the like.
      data_dir: TFDS directory, which may also hold such folders; "" for TFDS' default.

    Returns:
      Its rules, and its location.

    Raises:
      UserError: it is missing.
    """
    folder = os.path.join(os.path.expanduser(data_dir), name) if data_dir else ""
    present = [split for split in ("train", "test") if folder and is_folder(f"{folder}/{split}")]
    if len(present) == 1:
        raise UserError(f"{shown(folder)} has only {present[0]}/; it needs both train/ and test/")
    if present:
        found = [v for v in _VALIDATION_FOLDERS if is_folder(f"{folder}/{v}")]
        dataset = DATASETS.get(name, Dataset("folder"))._replace(
            source="folder", train="train", test="test", validation=found[0] if found else ""
        )
        if dataset.metric == "map11":
            raise UserError(
                f"{shown(folder)}: {name} has several labels per image; folders allow only one"
            )
        return dataset, folder
    dataset = DATASETS.get(name, Dataset(name))
    if dataset.source == "aircraft":
        open_aircraft(data_dir, dataset.test)
        return dataset, data_dir
    splits = sources.tfds_splits(_with_source(data, dataset.source, data_dir))
    if name not in DATASETS:
        if "test" not in splits:
            dataset = dataset._replace(test="validation")
        elif "validation" in splits:
            dataset = dataset._replace(validation="validation")
    return dataset, data_dir


def open_dataset(
    dataset: Dataset, data: ml_collections.ConfigDict, data_dir: str
) -> tuple[Dataset, dict[str, Source]]:
    """Opens what `find_dataset` found in data_dir.

    Returns:
      The rules and {"train", "test" and, where there is an official one, "validation": source}.

    Raises:
      UserError: it is missing, lacks a split or labels, or its splits have different classes.
    """
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    opened = {
        role: _open(_with_source(data, dataset.source, data_dir), split)
        for role, split in splits.items()
        if split
    }
    for source in opened.values():
        check_same_classes(opened["train"], source)
    if opened["train"].label_shape and dataset.metric != "map11":
        dataset = dataset._replace(metric="map11")
    return dataset, opened


def _with_source(
    data: ml_collections.ConfigDict, source: str, data_dir: str
) -> ml_collections.ConfigDict:
    own = data.copy_and_resolve_references()
    with own.unlocked():
        own.source, own.data_dir = source, data_dir
    return own


def _open(data: ml_collections.ConfigDict, split: str) -> Source:
    if data.source == "aircraft":
        return open_aircraft(data.data_dir, split)
    return sources.open_source(data, split, labeled=True)


def open_aircraft(data_dir: str, split: str) -> Source:
    """Opens a split (train, val, test) of FGVC-Aircraft's variants from its official archive.

    Raises:
      UserError: the archive is missing, or its layout differs from the original.
    """
    root = os.path.join(os.path.expanduser(data_dir), _AIRCRAFT)
    list_file, names_file = f"{root}/images_variant_{split}.txt", f"{root}/variants.txt"
    for file in (list_file, names_file, f"{root}/images"):
        if not exists(file):
            raise UserError(
                f"FGVC-Aircraft: {shown(file)} is missing; unpack fgvc-aircraft-2013b.tar.gz "
                "(www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft) into transfer.data_dir"
            )
    class_names = tuple(read_lines(names_file))
    numbers = {name: number for number, name in enumerate(class_names)}
    paths, labels = [], []
    for line in read_lines(list_file):
        image, _, variant = line.partition(" ")
        if variant not in numbers:
            raise UserError(
                f"{shown(list_file)}: {line!r} is not an image and a variant from variants.txt"
            )
        paths.append(f"{root}/images/{image}.jpg")
        labels.append(numbers[variant])
    present = {f"{root}/images/{name}" for name in names_in(f"{root}/images")}
    missing = [path for path in paths if path not in present]
    if missing:
        raise UserError(
            f"{shown(list_file)} lists {len(missing)} missing images, such as {shown(missing[0])}"
        )
    name = f"FGVC-Aircraft, split {split!r}"
    return from_files(name, "aircraft", paths, np.array(labels, np.int32), class_names, root=root)


def random_subset(num_examples: int, size: int) -> np.ndarray | None:
    """Returns a fixed random choice of `size` indices, ascending; None for all."""
    if not 0 < size < num_examples:
        return None
    return np.sort(np.random.default_rng(0).choice(num_examples, size, replace=False))


def split_validation(num_examples: int, share: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows into (train, validation), the latter a fixed random share of them."""
    permuted = np.random.default_rng(0).permutation(num_examples)
    held_out = round(share * num_examples)
    return np.sort(permuted[held_out:]), np.sort(permuted[:held_out])

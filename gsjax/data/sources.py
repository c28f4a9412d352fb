"""Opens image sources: TFDS data sets, folders, lists, and photographs in installed packages."""

import dataclasses
import os

import ml_collections

from gsjax.data import TFDS, find_source, folders, photos
from gsjax.data.paths import is_folder, read_lines
from gsjax.data.source import (
    Source,
    check_one_label,
    check_same_classes,
    from_files,
    in_memory,
    require_labels,
)
from gsjax.errors import UserError
from gsjax.runtime import files
from gsjax.runtime.tensorflow_setup import tf


def open_source(data: ml_collections.ConfigDict, split: str, labeled: bool = False) -> Source:
    """Opens a split of the configured data set.

    Args:
      data: the group `data` of a config.
      split: a TFDS split expression such as `train+unlabelled`, a folder, or `train` or `test` of
        the photographs.
      labeled: whether labels are required; a folder's classes are only looked for if so.

    Returns:
      The source. TFDS splits of at most `data.memory_gb` are read here and kept encoded.

    Raises:
      UserError: the data set or the split is missing, empty, or lacks labels that are required.
    """
    source = find_source(data.source).load()(data, split, labeled)
    return require_labels(source) if labeled else source


def tfds_splits(data: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Returns the splits of a TFDS data set, preparing it if necessary.

    Raises:
      UserError: it is not a TFDS data set, or cannot be prepared.
    """
    return TFDS.load("splits")(data)


def open_labeled(
    data: ml_collections.ConfigDict, train: Source | None = None
) -> tuple[Source, Source]:
    """Opens the labeled split and the test split, for evaluations.

    Args:
      data: the group `data` of a config.
      train: `data.split` if already open; reused as the labeled split if that is the same.

    Raises:
      UserError: there is none, their classes differ, or as in `open_source`.
    """
    if not data.labeled_split:
        raise UserError(
            "data.labeled_split is empty, but this needs labeled images: "
            "set data.labeled_split and data.test_split"
        )
    if train and data.labeled_split == data.split and data.source != "folder":
        bank = require_labels(train)
    else:
        bank = open_source(data, data.labeled_split, labeled=True)
    test = open_source(data, data.test_split, labeled=True)
    check_same_classes(bank, test)
    check_one_label(bank, test)
    return bank, test


def open_photos(data: ml_collections.ConfigDict, split: str, labeled: bool) -> Source:
    """Opens tiles of the built-in photographs; see `open_source`."""
    tiles, labels = photos.tiles(split, data.image_size)
    return in_memory(
        f"data.source=photos, split {split!r}",
        "photos",
        "photos",
        tf.constant(tiles),
        labels,
        photos.names(),
        labeled,
        lambda: [(f"{split} {data.image_size}", tiles.nbytes, 0.0)],
    )


def open_folder(data: ml_collections.ConfigDict, split: str, labeled: bool) -> Source:
    """Opens a folder of images; see `open_source`."""
    root = os.path.join(os.path.expanduser(data.data_dir), split).rstrip("/") or "/"
    name = files.shown(root)
    if not is_folder(root):
        raise UserError(f"{name} is not a folder: check data_dir and the split {split!r}")
    dataset = files.shown(os.path.basename(os.path.normpath(os.path.abspath(data.data_dir))))
    listing = folders.list_images(root)
    if not listing.names:
        raise UserError(f"{name} contains no images ({', '.join(folders.EXTENSIONS)})")
    folders.report_ignored(name, listing)
    paths = [f"{root}/{path}" for path in listing.names]
    if not labeled:
        return from_files(name, dataset, paths, root=root)
    labels = folders.class_labels(name, listing)
    class_names = tuple(map(files.shown, listing.folders))
    return from_files(name, dataset, paths, labels, class_names, root=root)


def open_list(data: ml_collections.ConfigDict, split: str, labeled: bool) -> Source:
    """Opens the images that a text file names, one per line; see `open_source`.

    The file is `split`, its names are relative to `data.data_dir` or else to the file's folder.
    """
    del labeled  # the caller requires them
    file = os.path.join(os.path.expanduser(data.data_dir), os.path.expanduser(split))
    root = os.path.expanduser(data.data_dir) or os.path.dirname(file)
    name = files.shown(file)
    paths = [os.path.join(root, os.path.expanduser(line)) for line in read_lines(file)]
    if not paths:
        raise UserError(f"{name} names no images: write the path of one on each line")
    dataset = files.shown(os.path.splitext(os.path.basename(file))[0])
    no_labels = f"{name} is a list of images without labels: use a folder with one folder per class"
    source = from_files(name, dataset, paths, root=root)
    return dataclasses.replace(source, no_labels=no_labels)

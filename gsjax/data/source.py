"""The interface of an image source; checks and constructors that sources share."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence

import numpy as np

from gsjax.data import classes
from gsjax.data.paths import encoded
from gsjax.data.shards import Shard
from gsjax.errors import UserError
from gsjax.runtime import files
from gsjax.runtime.tensorflow_setup import tf


@dataclasses.dataclass(frozen=True)
class Source:
    """Images in a fixed order, each identified by its index.

    Attributes:
      name: name of the data set and split, for messages; escaped if it is a folder's.
      dataset: name of the data set alone, for results.
      num_examples: number N of images.
      version: version of the data set, for results.
      labels: int32 [N], or None if only known once an image is read. With several labels per image,
        [N, C] of 1 (present), -1 (absent) and 0 (difficult: does not count).
      class_names: names of the labels, or None.
      labeled: whether every image must have a label.
      read: TensorFlow function from a key to (image, label). The key is the image's index or, in a
        source that is read sequentially, its raw record. The image is its encoded bytes, string [],
        or its pixels, uint8 [H, W, 3]; the label is int32 [] (-1 if there is none) or [C].
      files: the files the images are read from, as (path, bytes, modification time); identifies a
        source and changes to it.
      paths: paths of the images, if each is a file; as in Python, bytes that are not UTF-8 are
        surrogates (PEP 383).
      root: folder that holds them, which `names_digest` leaves out.
      shards: files of a source that is read sequentially; empty with random access.
      label_shape: () or (C,).
      no_labels: if no image can have a label, the error message for callers that need labels.
      numbers: of a part of another source, the indices of its images there; None for a whole one.
      file_names: reads the names that a data set records of its images' files, or None if it
        records none.
    """

    name: str
    dataset: str
    num_examples: int
    version: str
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    labeled: bool
    read: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    files: Callable[[], list[tuple[str, int, float]]]
    paths: tuple[str, ...] = ()
    root: str = ""
    shards: tuple[Shard, ...] = ()
    label_shape: tuple[int, ...] = ()
    no_labels: str = ""
    numbers: tuple[int, ...] | None = None
    file_names: Callable[[], list[str]] | None = None

    @functools.cached_property
    def names_digest(self) -> str:
        """Identifies the data set by the names of its files, wherever they are stored."""
        paths = self.paths or [f"/{os.path.basename(path)}" for path, _, _ in self.files()]
        root = encoded(self.root)
        names = b"\n".join(encoded(path).removeprefix(root) for path in paths)
        return hashlib.sha256(names).hexdigest()[:12]

    def image_name(self, index: int) -> str:
        """The name of an image in messages."""
        if self.paths:
            return files.shown(self.paths[index])
        number = index if self.numbers is None else self.numbers[index]
        return f"image {number} of {self.name}"


def in_memory(
    name: str,
    dataset: str,
    version: str,
    pictures: tf.Tensor,
    labels: np.ndarray,
    class_names: tuple[str, ...] | None,
    labeled: bool,
    files: Callable[[], list[tuple[str, int, float]]],
) -> Source:
    """Creates a source of images in memory: `pictures` is string [N] or uint8 [N, H, W, 3]."""
    label_tensor = tf.constant(labels, tf.int32)
    return Source(
        name=name,
        dataset=dataset,
        num_examples=len(labels),
        version=version,
        labels=labels,
        class_names=class_names,
        labeled=labeled,
        read=lambda index: (tf.gather(pictures, index), tf.gather(label_tensor, index)),
        files=files,
        label_shape=labels.shape[1:],
    )


def from_files(
    name: str,
    dataset: str,
    paths: Sequence[str],
    labels: np.ndarray | None = None,
    class_names: tuple[str, ...] | None = None,
    root: str = "",
) -> Source:
    """Creates a source of image files.

    Args:
      name: name for messages.
      dataset: name for results.
      paths: paths of N images, in the order of the source.
      labels: int32 [N], or None for none.
      class_names: names of the labels.
      root: folder that holds the images.
    """
    path_tensor = tf.constant([encoded(path) for path in paths])
    known = np.full(len(paths), -1, np.int32) if labels is None else labels
    label_tensor = tf.constant(known)

    def files() -> list[tuple[str, int, float]]:
        return [(path, *_size_and_time(path)) for path in paths]

    return Source(
        name=name,
        dataset=dataset,
        num_examples=len(paths),
        version=f"{len(paths)} files",
        labels=known,
        class_names=class_names,
        labeled=labels is not None,
        read=lambda index: (
            tf.io.read_file(tf.gather(path_tensor, index)),
            tf.gather(label_tensor, index),
        ),
        files=files,
        paths=tuple(paths),
        root=root,
    )


def _size_and_time(path: str) -> tuple[int, float]:
    try:
        stat = tf.io.gfile.stat(encoded(path))
    except tf.errors.OpError:  # a dangling link
        return -1, 0.0
    return stat.length, stat.mtime_nsec


def check_same_classes(bank: Source, test: Source) -> None:
    """Raises UserError if two labeled sources do not have the same classes."""
    difference = classes.difference(bank.class_names, test.class_names)
    if difference:
        raise UserError(f"{bank.name} and {test.name} have different classes: {difference}")


def check_one_label(*labeled: Source) -> None:
    """Raises UserError if a source's images have several labels each."""
    for source in labeled:
        if source.label_shape:
            raise UserError(
                f"{source.name} has several labels per image: only transfer supports that"
            )


def require_labels(source: Source) -> Source:
    """Returns the source, requiring a label for every image.

    Raises:
      UserError: an image is known to have none; sequential sources are checked while reading.
    """
    if source.no_labels:
        raise UserError(source.no_labels)
    source = dataclasses.replace(source, labeled=True)
    if source.labels is not None:
        check_labels(source, source.labels)
    return source


def check_labels(source: Source, labels: np.ndarray) -> None:
    """Raises UserError if a labeled source has an image without a label (label < 0)."""
    unlabeled = 0 if source.label_shape else int(np.sum(labels < 0))
    if source.labeled and unlabeled:
        raise UserError(
            f"{source.name} contains unlabeled images (at least {unlabeled}): "
            "data.labeled_split and data.test_split need a label for each"
        )

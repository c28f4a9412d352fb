"""What a source of pictures is, and the checks and constructors that all share."""

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
    """Pictures in a fixed order, each known by its index in it.

    Attributes:
      name: of the data set and the split, for messages; escaped where it is that of a folder.
      dataset: its name alone, for results.
      num_examples: number N of pictures.
      version: of the data set, for results.
      labels: int32 [N], or None where they are only known once a picture is read. Where a picture
        has several, [N, C] of 1 (is there), -1 (is not) and 0 (difficult: does not count).
      class_names: names of the labels, or None.
      labeled: whether every picture must have a label.
      read: TensorFlow function from a key to (picture, label). The key is the picture's index or,
        in a source that is read in sequence, its raw record. The picture is its encoded bytes,
        string [], or its pixels, uint8 [H, W, 3]; the label is int32 [] (-1 where there is none)
        or [C].
      files: what the pictures are read from, as (path, bytes, time of change); it tells a source
        from another or from itself after a change.
      paths: of the pictures, where each is a file; as Python has them, so that bytes that are not
        UTF-8 are surrogates (PEP 383).
      root: the folder that holds them, which `names_digest` leaves out.
      shards: the files of a source that is read in sequence; empty with random access.
      label_shape: () or (C,).
      no_labels: where no picture can have a label, the message for whoever needs them.
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

    @functools.cached_property
    def names_digest(self) -> str:
        """Tells the data set from another by the names of its files, wherever they lie."""
        paths = self.paths or [f"/{os.path.basename(path)}" for path, _, _ in self.files()]
        root = encoded(self.root)
        names = b"\n".join(encoded(path).removeprefix(root) for path in paths)
        return hashlib.sha256(names).hexdigest()[:12]

    def picture_name(self, index: int) -> str:
        """What a message calls a picture."""
        if self.paths:
            return files.shown(self.paths[index])
        return f"number {index} of {self.name}"


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
    """A source of pictures in memory: `pictures` is string [N] or uint8 [N, H, W, 3]."""
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
    """A source of picture files.

    Args:
      name: for messages.
      dataset: for results.
      paths: of N pictures, in the order of the source.
      labels: int32 [N], or None for none.
      class_names: names of the labels.
      root: the folder that holds them.
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
    except tf.errors.OpError:  # a link to nowhere
        return -1, 0.0
    return stat.length, stat.mtime_nsec


def check_same_classes(bank: Source, test: Source) -> None:
    """Raises UserError if two labeled sources do not have the same classes."""
    difference = classes.difference(bank.class_names, test.class_names)
    if difference:
        raise UserError(f"{bank.name} and {test.name} have different classes: {difference}")


def check_one_label(*labeled: Source) -> None:
    """Raises UserError if the pictures of a source have several labels each."""
    for source in labeled:
        if source.label_shape:
            raise UserError(f"{source.name} has several labels a picture: only transfer takes that")


def require_labels(source: Source) -> Source:
    """Returns the source as one whose every picture must have a label.

    Raises:
      UserError: one is known to have none; what is read in sequence is checked when it is read.
    """
    if source.no_labels:
        raise UserError(source.no_labels)
    source = dataclasses.replace(source, labeled=True)
    if source.labels is not None:
        check_labels(source, source.labels)
    return source


def check_labels(source: Source, labels: np.ndarray) -> None:
    """Raises UserError if a labeled source has an example without a label (label < 0)."""
    unlabeled = 0 if source.label_shape else int(np.sum(labels < 0))
    if source.labeled and unlabeled:
        raise UserError(
            f"{source.name} holds unlabeled examples (at least {unlabeled}): "
            "data.labeled_split and data.test_split need a label for each"
        )

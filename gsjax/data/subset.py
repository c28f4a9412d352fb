"""A part of a labeled source: a fraction of each class, or the images that a file lists."""

import contextlib
import dataclasses
import os

import numpy as np

from gsjax.data.batches import Batches
from gsjax.data.source import Source, check_labels
from gsjax.errors import UserError
from gsjax.runtime import files, metrics
from gsjax.runtime.tensorflow_setup import tf

_BATCH = 1024  # labels read at a time


def choose(source: Source, fraction: float, label_file: str, seed: int) -> Source:
    """Returns the images whose labels may be used, as a source of its own.

    Args:
      source: a labeled source.
      fraction: fraction of each class, see `stratified`; 1 for the whole source.
      label_file: file with the names of the images, see `listed`; "" for none.
      seed: seed of the fraction.

    Raises:
      UserError: the source is read sequentially, or the file does not fit it.
    """
    if fraction == 1 and not label_file:
        return source
    if source.shards:
        raise UserError(
            f"{source.name} is too large for data.memory_gb and read sequentially, so a part of it "
            "cannot be chosen: raise data.memory_gb, or prepare it as array_record "
            "(tfds build --file_format=array_record)"
        )
    if label_file:
        return restricted(source, listed(source, label_file))
    labels = _read_labels(source) if source.labels is None else source.labels
    return restricted(source, stratified(labels, fraction, seed))


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draws a fraction of each class.

    A function of the labels and the seed alone; a larger fraction holds a smaller one's images.

    Args:
      labels: int32 [N].
      fraction: a class with n images keeps max(1, round(fraction * n)) of them.
      seed: non-negative.

    Returns:
      Ascending indices, int64 [n].
    """
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(members)))
        chosen.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(chosen))


def listed(source: Source, path: str) -> np.ndarray:
    """Finds the images that a file lists, one name per line, as SimCLR's subsets of ImageNet do.

    A name is that of the image's file, such as `n01440764_10026.JPEG`, or its path in the folder of
    the split, such as `n01440764/n01440764_10026.JPEG`.

    Args:
      source: images in files, or a TFDS data set that records their names as `file_name`.
      path: the file.

    Returns:
      Ascending indices, int64 [n].

    Raises:
      UserError: the file cannot be read or lists nothing; the source has no names; or one in the
        file belongs to none of its images, or to several.
    """
    shown = files.shown(path)
    try:
        text = files.absolute(path).read_bytes()
    except files.error_types(ValueError) as error:
        raise UserError(
            f"finetune.label_file: {shown} cannot be read: {files.reason(error)}"
        ) from error
    wanted = sorted({os.fsdecode(line.strip()) for line in text.splitlines()} - {""})
    if not wanted:
        raise UserError(f"finetune.label_file: {shown} lists no images")
    places: dict[str, list[int]] = {}
    for index, name in enumerate(_names(source)):
        for key in {name, name.rpartition("/")[2]}:
            places.setdefault(key, []).append(index)
    missing = [name for name in wanted if name not in places]
    if missing:
        raise UserError(
            f"finetune.label_file: {len(missing)} of the {len(wanted)} names in {shown}, such as "
            f"{files.shown(missing[0])}, are not in {source.name}: check data.labeled_split"
        )
    several = [name for name in wanted if len(places[name]) > 1]
    if several:
        raise UserError(
            f"finetune.label_file: {source.name} has {len(places[several[0]])} images named "
            f"{files.shown(several[0])}: list their paths, such as CLASS/{files.shown(several[0])}"
        )
    return np.unique([places[name][0] for name in wanted])


def restricted(source: Source, indices: np.ndarray) -> Source:
    """Returns a source of some of the images.

    Args:
      source: a source with random access.
      indices: ascending int64 [n].
    """
    table = tf.constant(indices, tf.int64)
    before = range(source.num_examples) if source.numbers is None else source.numbers
    return dataclasses.replace(
        source,
        name=f"{source.name} ({len(indices)} of {source.num_examples} images)",
        num_examples=len(indices),
        labels=None if source.labels is None else source.labels[indices],
        read=lambda index: source.read(tf.gather(table, index)),
        paths=tuple(source.paths[i] for i in indices) if source.paths else (),
        numbers=tuple(int(before[i]) for i in indices),
        file_names=None,
    )


def _names(source: Source) -> list[str]:
    """Returns the name of each image, or its path in the folder of the split."""
    if source.paths:
        return [path.removeprefix(source.root).lstrip("/") for path in source.paths]
    if source.file_names is None:
        raise UserError(
            f"finetune.label_file: {source.name} does not record the names of its images: use "
            "finetune.fraction, or a folder of images (data.source=folder)"
        )
    return source.file_names()


def _read_labels(source: Source) -> np.ndarray:
    """Reads the labels of a source that only knows them once an image is read; int32 [N]."""
    metrics.log(f"reading the labels of {source.name}")
    indices = tf.data.Dataset.range(source.num_examples)
    labels = indices.map(lambda index: {"label": source.read(index)[1]}).batch(_BATCH)
    with contextlib.closing(Batches(labels, lambda rows: (row for row in rows))) as batches:
        found = np.concatenate([batch["label"] for batch in batches])
    check_labels(source, found)
    return found

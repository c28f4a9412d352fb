"""Reads TFRecord files sequentially, for data sets too large to keep in memory."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gsjax.data.paths import encoded
from gsjax.errors import UserError
from gsjax.runtime.files import shown
from gsjax.runtime.tensorflow_setup import tf

_SHUFFLE_BUFFER = 16384  # encoded images
_TOO_FEW = tf.errors.FailedPreconditionError  # from assert_cardinality
_OPEN_FILES = 16  # read in turn, so that the buffer mixes images of several shards


@dataclasses.dataclass(frozen=True)
class Shard:
    """Consecutive records of a TFRecord file that belong to a split.

    Attributes:
      path: path of the file.
      skip: records in the file before the first of these.
      take: number of records.
      first: index of the first one in the split.
    """

    path: str
    skip: int
    take: int
    first: int


def from_instructions(instructions: Iterable) -> tuple[Shard, ...]:
    """Returns the shards of a split from its TFDS file instructions."""
    shards, first = [], 0
    for part in instructions:
        take = part.examples_in_shard - part.skip if part.take == -1 else part.take
        shards.append(Shard(str(part.filename), part.skip, take, first))
        first += take
    return tuple(shards)


def gigabytes(shards: Iterable[Shard]) -> float:
    """The size of the files on disk in 10^9 bytes."""
    return sum(size(path) for path in {shard.path for shard in shards}) / 1e9


def size(path: str) -> int:
    """The size of a file in bytes.

    Raises:
      UserError: there is no such file.
    """
    try:
        return tf.io.gfile.stat(encoded(path)).length
    except tf.errors.NotFoundError as error:
        raise unusable(path, "no such file") from error


def host_share(
    shards: Sequence[Shard], process_index: int, process_count: int
) -> tuple[Shard, ...]:
    """The shards that a host reads: an even, contiguous share of all records."""
    num_examples = sum(shard.take for shard in shards)
    begin = process_index * num_examples // process_count
    end = (process_index + 1) * num_examples // process_count
    share = []
    for shard in shards:
        first = max(shard.first, begin)
        take = min(shard.first + shard.take, end) - first
        if take > 0:
            share.append(Shard(shard.path, shard.skip + first - shard.first, take, first))
    return tuple(share)


def in_order(shards: Sequence[Shard]) -> tf.data.Dataset:
    """The records, one shard after another: (index int64 [], record string [])."""
    return tf.data.Dataset.from_tensor_slices(_columns(shards)).flat_map(_open)


def shuffled(shards: Sequence[Shard], seed: int, epoch: tf.Tensor) -> tf.data.Dataset:
    """The records, shuffled as a function of (seed, epoch); elements as in `in_order`.

    Args:
      shards: shards to read.
      seed: non-negative.
      epoch: int64 [].
    """

    def draw(epoch: np.int64) -> tuple[np.ndarray, np.int64]:
        generator = np.random.default_rng([seed, int(epoch)])
        return generator.permutation(len(shards)), generator.integers(2**62)

    order, buffer_seed = tf.numpy_function(draw, [epoch], (tf.int64, tf.int64))
    columns = [
        tf.gather(column, tf.ensure_shape(order, [len(shards)])) for column in _columns(shards)
    ]
    records = tf.data.Dataset.from_tensor_slices(tuple(columns)).interleave(
        _open, cycle_length=_OPEN_FILES, block_length=1
    )
    return records.shuffle(
        _SHUFFLE_BUFFER, seed=tf.ensure_shape(buffer_seed, []), reshuffle_each_iteration=False
    )


def _columns(shards: Sequence[Shard]) -> tuple[tf.Tensor, ...]:
    paths, *numbers = zip(*map(dataclasses.astuple, shards), strict=True)
    return tf.constant(list(map(encoded, paths))), *(
        tf.constant(column, tf.int64) for column in numbers
    )


@tf.autograph.experimental.do_not_convert
def _open(path: tf.Tensor, skip: tf.Tensor, take: tf.Tensor, first: tf.Tensor) -> tf.data.Dataset:
    records = tf.data.TFRecordDataset(path).skip(skip).take(take)
    # A file truncated between two records would just end.
    records = records.apply(tf.data.experimental.assert_cardinality(take))
    return tf.data.Dataset.zip(tf.data.Dataset.range(first, first + take), records)


@contextlib.contextmanager
def explain_read_errors(shards: Sequence[Shard]) -> Iterator[None]:
    """Names the file at fault if reading the shards fails, which TensorFlow does not.

    Raises:
      UserError: one of the files is missing or damaged.
    """
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.NotFoundError, _TOO_FEW) as error:
        needed: dict[str, int] = {}
        for shard in shards:
            needed[shard.path] = max(needed.get(shard.path, 0), shard.skip + shard.take)
        for path, least in needed.items():
            try:
                records = tf.data.TFRecordDataset(tf.constant(encoded(path)))
                held = int(records.reduce(np.int64(0), lambda number, _: number + 1))
            except tf.errors.OpError as reason:
                raise unusable(path, short_message(reason)) from error
            if held < least:
                raise unusable(path, f"only {held} of at least {least} records") from error
        raise


def unusable(path: str, reason: str) -> UserError:
    """The error for a missing or damaged file of a prepared data set."""
    return UserError(
        f"{shown(path)} is missing or damaged ({reason}): copy it again, or delete "
        f"{shown(os.path.dirname(path))} and rerun so that TFDS prepares the data set again"
    )


def short_message(error: tf.errors.OpError) -> str:
    """The line of TensorFlow's message that says what went wrong."""
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message, flags=re.DOTALL)
    around = ("Graph execution error", "Detected at", "Traceback", "Hint:")
    lines = [line for line in text.strip().splitlines() if line[:1].strip()]
    return next((ln.strip() for ln in lines[::-1] if not ln.startswith(around)), "unknown")

"""TFRecord files read in sequence: for data sets that are too large to keep in memory."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

_SHUFFLE_BUFFER = 16384  # encoded pictures
_OPEN_FILES = 16  # read in turn, so that the buffer holds pictures of several shards


@dataclasses.dataclass(frozen=True)
class Shard:
    """Consecutive records of a TFRecord file that belong to a split.

    Attributes:
      path: of the file.
      skip: records of the file before the first of these.
      take: number of records.
      first: index of the first one in the split.
    """

    path: str
    skip: int
    take: int
    first: int


def from_instructions(instructions: Iterable) -> tuple[Shard, ...]:
    """The shards of a split from its TFDS file instructions."""
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
    """The bytes of a file."""
    return tf.io.gfile.stat(path).length


def host_share(
    shards: Sequence[Shard], process_index: int, process_count: int
) -> tuple[Shard, ...]:
    """The part of the shards that a host reads: its even, contiguous share of all records."""
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
    """The records, one shard after the other: (index int64 [], record string [])."""
    return tf.data.Dataset.from_tensor_slices(_columns(shards)).flat_map(_open)


def shuffled(shards: Sequence[Shard], seed: int, epoch: tf.Tensor) -> tf.data.Dataset:
    """The records in an order that is a function of (seed, epoch), elements as in `in_order`.

    Args:
      shards: what to read.
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
    return tf.constant(paths), *(tf.constant(column, tf.int64) for column in numbers)


@tf.autograph.experimental.do_not_convert
def _open(path: tf.Tensor, skip: tf.Tensor, take: tf.Tensor, first: tf.Tensor) -> tf.data.Dataset:
    records = tf.data.TFRecordDataset(path).skip(skip).take(take)
    return tf.data.Dataset.zip(tf.data.Dataset.range(first, first + take), records)

"""The order of the images in training: a function of the seed and the step."""

import functools

import numpy as np

from gsjax.data import shards
from gsjax.data.source import Source
from gsjax.errors import UserError
from gsjax.runtime.tensorflow_setup import tf


def steps_per_epoch(source: Source, batch_size: int, setting: str = "batch_size") -> int:
    """Returns the number of whole batches; the rest of an epoch's permutation is dropped.

    Raises:
      UserError: there is not even one.
    """
    if source.num_examples < batch_size:
        raise UserError(
            f"{setting}={batch_size} is more than the {source.num_examples} images of "
            f"{source.name}: use at most {source.num_examples}"
        )
    return source.num_examples // batch_size


def permuted_records(
    source: Source,
    seed: int,
    batch_size: int,
    process_index: int,
    process_count: int,
    start_step: int,
    num_steps: int,
) -> tf.data.Dataset:
    """(positions [b], (indices [b], indices [b])) of this host's images at each step.

    The steps are start_step, ..., num_steps - 1; b = batch_size / process_count. The position
    counts images from the start of training, over all hosts.
    """
    local_size = batch_size // process_count
    epoch_steps = steps_per_epoch(source, batch_size)

    @functools.lru_cache(maxsize=1)
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(source.num_examples)

    def local_indices(step: np.int64) -> tuple[np.ndarray, np.ndarray]:
        epoch, step_in_epoch = divmod(int(step), epoch_steps)
        rows = process_index * local_size + np.arange(local_size)
        indices = permutation(epoch)[step_in_epoch * batch_size + rows]
        return int(step) * batch_size + rows, indices

    def positions_and_indices(step: tf.Tensor) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
        positions, indices = tf.numpy_function(local_indices, [step], (tf.int64, tf.int64))
        positions.set_shape([local_size])
        indices.set_shape([local_size])
        return positions, (indices, indices)

    return tf.data.Dataset.range(start_step, num_steps).map(positions_and_indices)


def sequential_records(
    source: Source,
    seed: int,
    batch_size: int,
    process_index: int,
    process_count: int,
    start_step: int,
    num_steps: int,
) -> tf.data.Dataset:
    """(positions, (indices, raw records)), like `permuted_records`, from shuffled shards."""
    local_size = batch_size // process_count
    epoch_steps = steps_per_epoch(source, batch_size)
    share = shards.host_share(source.shards, process_index, process_count)

    def epoch_records(epoch: tf.Tensor) -> tf.data.Dataset:
        first_step = epoch * epoch_steps

        def with_position(number: tf.Tensor, record: tuple) -> tuple[tf.Tensor, tuple]:
            step = first_step + number // local_size
            return step * batch_size + process_index * local_size + number % local_size, record

        records = shards.shuffled(share, seed, epoch).take(epoch_steps * local_size)
        # Skipped records are read and shuffled, but not decoded.
        skip = tf.maximum(start_step - first_step, 0) * local_size
        return records.enumerate().skip(skip).map(with_position)

    epochs = tf.data.Dataset.range(start_step // epoch_steps, -(-num_steps // epoch_steps))
    records = epochs.flat_map(epoch_records).take((num_steps - start_step) * local_size)
    return records.batch(local_size, drop_remainder=True)

"""Representations of a data set, in its order."""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gsjax import augment, parallel

EncodeFn = Callable[[Any, jax.Array], jax.Array]


def create_encode_fn(
    encoder: nn.Module, mean: tuple, std: tuple, dtype: Any, mesh: Mesh
) -> EncodeFn:
    """Compiles (variables, images uint8 [B, S, S, 3]) -> representations [B, F].

    The images are split over the devices; BatchNorm is in inference mode.
    """

    def encode(variables, images):
        return encoder.apply(variables, augment.normalise(images, mean, std, dtype), train=False)

    batch = P(parallel.AXIS)
    return parallel.data_parallel(encode, mesh, in_specs=(P(), batch), out_specs=batch)


def create_pixels_fn(mean: tuple, std: tuple, dtype: Any, mesh: Mesh) -> EncodeFn:
    """Compiles the same for normalised raw pixels [B, S * S * 3], the floor of every table."""

    def pixels(_, images):
        return augment.normalise(images, mean, std, dtype).reshape(len(images), -1)

    batch = P(parallel.AXIS)
    return parallel.data_parallel(pixels, mesh, in_specs=(P(), batch), out_specs=batch)


def extract(
    encode_fn: EncodeFn,
    variables: Any,
    batches: Iterator[dict[str, np.ndarray]],
    mesh: Mesh,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features [N, F] and labels [N] of every valid image, the same on every host.

    Args:
      encode_fn: as from `create_encode_fn`.
      variables: its first argument.
      batches: `gsjax.data.input_pipeline.test_batches` of this host, padded to one size.
      mesh: the devices.
      progress: told the number of batches done.
    """
    rows = []
    for i, batch in enumerate(batches):
        encoded = encode_fn(variables, parallel.shard(batch["image"], mesh))
        local = np.concatenate([shard.data for shard in _in_order(encoded.addressable_shards)])
        valid = batch["valid"]
        rows.append((local[valid], batch["label"][valid], batch["index"][valid]))
        progress(i + 1)
    features, labels, index = (np.concatenate(column) for column in zip(*rows, strict=True))
    if jax.process_count() > 1:
        features, labels, index = _gather(features, labels, index)
    order = np.argsort(index, kind="stable")
    return features[order], labels[order]


def _in_order(shards):
    return sorted(shards, key=lambda shard: shard.index[0].start or 0)


def _gather(*columns: np.ndarray) -> list[np.ndarray]:
    """Concatenates the hosts' rows, of which each may have another number."""
    counts = multihost_utils.process_allgather(np.asarray(len(columns[0])))
    most = int(counts.max())
    gathered = []
    for column in columns:
        padding = [(0, most - len(column))] + [(0, 0)] * (column.ndim - 1)
        everyones = multihost_utils.process_allgather(np.pad(column, padding))
        gathered.append(
            np.concatenate([part[:n] for part, n in zip(everyones, counts, strict=True)])
        )
    return gathered

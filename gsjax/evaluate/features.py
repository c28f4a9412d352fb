"""Representations of a data set, in its order."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gsjax import augment
from gsjax.data import input_pipeline
from gsjax.data.source import Source
from gsjax.data.transforms import Transform
from gsjax.errors import UserError
from gsjax.runtime import memory, metrics, parallel

EncodeFn = Callable[[Any, jax.Array], jax.Array]

_MAX_NAMED = 5  # damaged images named in a message


class Features(NamedTuple):
    """Rows of n images, in the order of their source.

    Attributes:
      feature: float [n, F] representations, 0 for an image that cannot be decoded.
      label: int32 [n], -1 if there is none; or [n, C].
      indices: int64 [n] indices of the images in the source.
      valid: bool [n], False for an image that cannot be decoded.
    """

    feature: np.ndarray
    label: np.ndarray
    indices: np.ndarray
    valid: np.ndarray

    @property
    def left_out(self) -> int:
        """Number of images that cannot be decoded."""
        return int(np.sum(~self.valid))

    def decoded(self) -> "Features":
        """The rows of the images that can be decoded."""
        if self.valid.all():
            return self
        return Features(*(column[self.valid] for column in self))


def create_encode_fn(
    encoder: nn.Module, mean: tuple, std: tuple, dtype: Any, mesh: Mesh, part: str = "pooled"
) -> EncodeFn:
    """Compiles (variables, images uint8 [B, H, W, 3]) -> representations [B, F].

    The images are split over the devices; BatchNorm is in inference mode. The part "maps" of the
    encoder's `Outputs` is [B, h, w, C].
    """

    def encode(variables, images):
        images = augment.normalize(images, mean, std, dtype)
        outputs: Any = encoder.apply(variables, images, train=False)
        return getattr(outputs, part)

    batch = P(parallel.AXIS)
    return parallel.data_parallel(encode, mesh, in_specs=(P(), batch), out_specs=batch)


def check_hosts(source: Source) -> None:
    """Checks that all hosts have the same images; all hosts must call this together.

    Raises:
      UserError: their number or the names of their files differ.
    """
    if jax.process_count() == 1:  # hashing the names of millions of files takes time
        return
    if not parallel.agree(source.num_examples, source.names_digest):
        raise UserError(f"{source.name} differs between hosts: give all hosts the same files")


def extract(
    encode_fn: EncodeFn,
    variables: Any,
    source: Source,
    transform: Transform,
    batch_size: int,
    mesh: Mesh,
    label: str,
    indices: np.ndarray | None = None,
    check: Callable[[], None] = lambda: None,
) -> Features:
    """Encodes images over all devices and hosts; every host gets all rows.

    Args:
      encode_fn: as returned by `create_encode_fn`.
      variables: its first argument.
      source: the images.
      transform: transform of each image.
      batch_size: images per step over all devices and hosts; rounded up to fill them evenly.
      mesh: the devices.
      label: label of the progress line.
      indices: ascending int64 [n], the images to encode; None for all.
      check: called between batches; may raise to end the extraction.

    Returns:
      Exactly one row for each image; those that cannot be decoded are marked.

    Raises:
      UserError: an image in a labeled source has no label, the hosts do not have the same images,
        or device memory does not suffice.
    """
    check_hosts(source)
    devices = mesh.devices.size
    batch_size = math.ceil(batch_size / devices) * devices
    wanted = np.arange(source.num_examples) if indices is None else np.asarray(indices)
    batches = input_pipeline.test_batches(
        source, transform, batch_size, jax.process_index(), jax.process_count(), wanted
    )
    rows: Features | None = None
    progress = metrics.Progress(label, math.ceil(len(wanted) / batch_size), inner=True)
    with contextlib.closing(batches), contextlib.closing(progress):
        for i, batch in enumerate(batches):
            with memory.explain_out_of_memory(lambda: memory_advice(batch_size, devices)):
                encoded = encode_fn(variables, parallel.shard(batch["image"], mesh))
                part = parallel.gather((local_rows(encoded), batch["label"], batch["index"]))
            feature, labels, index = (column[part[2] >= 0] for column in part)
            if rows is None:
                rows = Features(
                    np.zeros((len(wanted), *feature.shape[1:]), feature.dtype),
                    np.full((len(wanted), *labels.shape[1:]), -1, np.int32),
                    wanted,
                    np.zeros(len(wanted), bool),
                )
            place = np.searchsorted(wanted, index)
            rows.feature[place], rows.label[place], rows.valid[place] = feature, labels, True
            progress.update(i + 1)
            check()
    assert rows is not None  # no source is empty
    return rows


def memory_advice(batch_size: int, devices: int) -> str:
    """Says what to do if a batch does not fit into device memory."""
    if batch_size > devices:
        return f"{batch_size} images are encoded together; use a smaller features.batch_size"
    return "one image is too large for the encoder; use a smaller image size"


def report(source: Source, rows: Features, need_all: bool = False) -> Features:
    """Reports what cannot be decoded, and returns the rows.

    Raises:
      UserError: an image cannot be decoded and all are needed, none can be decoded, or a feature
        is not finite.
    """
    if need_all and rows.left_out:
        damaged = source.image_name(int(rows.indices[~rows.valid][0]))
        raise UserError(
            f"{damaged} cannot be decoded, but {source.name} needs every image: download it again"
        )
    if not rows.valid.any():
        raise UserError(f"{source.name}: none of the images can be decoded")
    if not np.isfinite(rows.feature.sum(axis=1)).all():
        raise UserError(f"features of {source.name} are not finite: the encoder is broken")
    if rows.left_out:
        named = some_names(source, rows.indices[~rows.valid].tolist())
        metrics.log(
            f"left out {rows.left_out} of {len(rows.valid)} images that cannot be decoded: {named}"
        )
    return rows


def some_names(source: Source, indices: Sequence[int]) -> str:
    """Names the first few of some images, and counts the others."""
    names = ", ".join(map(source.image_name, indices[:_MAX_NAMED]))
    more = len(indices) - _MAX_NAMED
    return f"{names} and {more} more" if more > 0 else names


def local_rows(array: jax.Array) -> np.ndarray:
    """Returns this host's rows of an array that is split over the devices."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])

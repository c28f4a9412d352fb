"""Batches of views with their crop boxes for training, and of whole images for evaluation."""

import functools
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence

import ml_collections
import numpy as np

from gsjax.crops import Crops, limits_overlap, local_size
from gsjax.data import crops, shards
from gsjax.data.batches import Batch, Batches
from gsjax.data.damage import ExampleFn, Replacements, read_key, retried
from gsjax.data.decode import FORMATS, decode_image
from gsjax.data.order import permuted_records, sequential_records, steps_per_epoch
from gsjax.data.source import Source, check_labels
from gsjax.data.transforms import Transform
from gsjax.errors import UserError
from gsjax.runtime.tensorflow_setup import tf

_OVERLAPPING = 2  # batches decoded at a time: the next one fills idle cores as the first ends


def train_batches(
    source: Source,
    config: ml_collections.ConfigDict,
    start_step: int,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
    num_views: int = 2,
    local_views: bool = False,
) -> Batches:
    """Returns this host's part of the batches of steps start_step, ..., num_steps - 1.

    The batch of a step is a function of the config, its seed and the step. With random access it
    does not depend on the number of hosts either: an epoch is a permutation of the indices,
    truncated after the last whole batch, and each host takes its contiguous part of the global
    batch. From a source that is read sequentially, each host gets an even share of the records,
    shuffled by file and through a buffer.

    An image that cannot be decoded is replaced (see `gsjax.data.damage`), so no count changes:
    another one takes its position, cropped with the seed of that position.

    Args:
      source: the images.
      config: the whole config; its `batch_size` B counts the images of all hosts.
      start_step: first step, counted from the start of training.
      num_steps: total steps of training, not counted from start_step.
      process_index: this host's number.
      process_count: number of hosts; b = B / process_count.
      num_views: V; 1 for the linear evaluation, whose crops have no overlap to restrict.
      local_views: whether to add the local views of `crops`, if there are any.

    Returns:
      Dicts: `global`, `gsjax.crops.Crops` of b images and V views, and maybe `local`; `size` int32
      [b, 2] (height and width of the original); `label` int32 [b] (-1: unknown); `index` int64 [b]
      in the source.

    Raises:
      UserError: there are fewer images than in a batch, the hosts cannot split a batch evenly, or
        (while iterating) more images are damaged than `data.max_damaged` or a file of the data set
        cannot be read.
    """
    local_size = _local_size(config.batch_size, process_count)
    epoch_steps = steps_per_epoch(source, config.batch_size)
    make_records = sequential_records if source.shards else permuted_records
    records = make_records(
        source,
        config.seed,
        config.batch_size,
        process_index,
        process_count,
        start_step,
        num_steps,
    )
    example_fn = _example_fn(
        source,
        functools.partial(_views, config, num_views, local_views and config.crops.local_views > 0),
    )
    replacements = Replacements(source, config.seed, config.data.max_damaged, example_fn)
    is_timed = bool(source.shards and start_step % epoch_steps and process_index == 0)

    def complete(rows: Iterator) -> Generator[Batch, None, None]:
        return _completed(source, _timed_start(rows, source.name, is_timed), replacements)

    return Batches(_decoded(records, example_fn, local_size), complete)


def test_batches(
    source: Source,
    transform: Transform,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    indices: np.ndarray | None = None,
) -> Batches:
    """Returns this host's part of the batches of all images that can be decoded, in order.

    Args:
      source: the images.
      transform: gives these images one size [h, w]; a static one, if it must be known before the
        first image (a host may have none).
      batch_size: B, images per batch over all hosts.
      process_index: this host's number; it takes its contiguous part of each batch.
      process_count: number of hosts; b = B / process_count. All get the same number of batches.
      indices: ascending int64 [n], the images to use; None for all.

    Returns:
      Dicts: `image` uint8 [b, h, w, 3]; `label` int32 [b] (-1: unknown) or [b, C]; `index` int64
      [b], -1 in rows that pad a batch. A damaged image has no row.

    Raises:
      UserError: the hosts cannot split a batch evenly, or (while iterating) an image in a labeled
        source has no label, or memory or storage fails.
    """
    local_size = _local_size(batch_size, process_count)
    wanted = np.arange(source.num_examples) if indices is None else np.asarray(indices)

    def is_local(position: tf.Tensor, *_) -> tf.Tensor:
        return (position % batch_size) // local_size == process_index

    if source.shards:
        is_wanted = np.zeros(source.num_examples, bool)
        is_wanted[wanted] = True
        table = tf.constant(is_wanted)
        records = shards.in_order(source.shards).filter(lambda index, _: tf.gather(table, index))
    else:
        records = tf.data.Dataset.from_tensor_slices(wanted).map(lambda index: (index, index))
    records = records.enumerate().filter(is_local).batch(local_size)
    example_fn = _example_fn(source, functools.partial(_transformed, transform))
    dataset = _decoded(records, example_fn, local_size)
    empty = {name: np.asarray(column) for name, column in _no_rows(dataset.element_spec[2]).items()}

    def complete(rows: Iterator) -> Generator[Batch, None, None]:
        batches = retried(source, rows, example_fn)
        return _padded(source, batches, empty, -(-len(wanted) // batch_size), local_size)

    return Batches(dataset, complete)


def load_images(source: Source, indices: Sequence[int]) -> list[np.ndarray]:
    """Returns whole originals, each uint8 [H, W, 3], for figures.

    Raises:
      UserError: one cannot be decoded.
    """
    images = []
    for index in map(int, indices):
        key = read_key(source, index)
        try:
            images.append(_decode(source.read(key)[0]).numpy())
        except tf.errors.OpError as error:
            raise UserError(
                f"{source.image_name(index)} cannot be decoded: it is damaged, missing or not "
                f"{FORMATS}; fix or remove it"
            ) from error
    return images


def _local_size(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        raise UserError(
            f"a batch of {batch_size} images cannot be split evenly over {process_count} hosts: "
            f"use a multiple of {process_count}"
        )
    return batch_size // process_count


def _decode(picture: tf.Tensor) -> tf.Tensor:
    return decode_image(picture) if picture.dtype == tf.string else picture


def _views(
    config: ml_collections.ConfigDict,
    num_views: int,
    has_local: bool,
    position: tf.Tensor,
    index: tf.Tensor,
    picture: tf.Tensor,
) -> dict[str, tf.Tensor]:
    del index
    image = _decode(picture)
    size = tf.shape(image)[:2]
    seed = tf.stack([tf.constant(config.seed, tf.int64), position])
    overlap = config.crops if num_views > 1 and limits_overlap(config.crops) else None
    boxes = crops.random_resized_crop_boxes(seed, size, config.augment, num_views, overlap)
    method = config.augment.interpolation
    columns = _crops("global", image, boxes, config.data.image_size, method)
    if has_local:
        boxes = crops.local_boxes(seed, size, config.augment.crop, config.crops)
        columns |= _crops("local", image, boxes, local_size(config), method)
    return {**columns, "size": size}


def _crops(
    name: str, image: tf.Tensor, boxes: tf.Tensor, image_size: int, method: str
) -> dict[str, tf.Tensor]:
    views = [crops.crop_and_resize(image, box, image_size, method) for box in tf.unstack(boxes)]
    return {f"{name}/images": tf.stack(views), f"{name}/boxes": boxes}


def _transformed(
    transform: Transform, position: tf.Tensor, index: tf.Tensor, picture: tf.Tensor
) -> dict[str, tf.Tensor]:
    del position
    return {"image": transform(index, _decode(picture))}


def _example_fn(source: Source, transform_fn: Callable[..., Batch]) -> ExampleFn:
    """Creates (position, index, key) -> columns of one row."""

    @tf.autograph.experimental.do_not_convert
    def example(position: tf.Tensor, index: tf.Tensor, key: tf.Tensor) -> dict[str, tf.Tensor]:
        picture, label = source.read(key)
        columns = transform_fn(position, index, picture)
        return {**columns, "label": label, "index": index, "position": position}

    return example


def _decoded(records: tf.data.Dataset, example_fn: ExampleFn, local_size: int) -> tf.data.Dataset:
    """(positions [b], indices [b], rows [<= b] of what can be decoded) of each batch of records.

    Only what fails in `example_fn` has no row. Errors of the records themselves, such as a missing
    file of the data set, are raised.
    """

    @tf.autograph.experimental.do_not_convert
    def decode(positions: tf.Tensor, record: tuple[tf.Tensor, tf.Tensor]) -> tuple:
        indices, keys = record
        examples = tf.data.Dataset.from_tensor_slices((positions, indices, keys)).map(
            example_fn, num_parallel_calls=os.cpu_count(), deterministic=True
        )
        rows = examples.ignore_errors().batch(local_size)
        none = tf.data.Dataset.from_tensors(_no_rows(rows.element_spec))
        return positions, indices, rows.concatenate(none).take(1).get_single_element()

    return records.map(decode, num_parallel_calls=_OVERLAPPING, deterministic=True)


def _no_rows(spec: dict[str, tf.TensorSpec]) -> dict[str, tf.Tensor]:
    """Columns [0, ...] of a batch; a side that depends on the image is 1."""
    return {
        name: tf.zeros([0, *(side or 1 for side in column.shape[1:])], column.dtype)
        for name, column in spec.items()
    }


def _timed_start(batches: Iterator, name: str, is_timed: bool) -> Iterator:
    """Yields the same batches; if `is_timed`, prints how long the first one took."""
    start = time.monotonic()
    for number, batch in enumerate(batches):
        if is_timed and number == 0:
            seconds = time.monotonic() - start
            print(f"resumed  {name}: skipped records already used ({seconds:.1f} s)", flush=True)
        yield batch


def _completed(
    source: Source, batches: Iterator, replacements: Replacements
) -> Generator[Batch, None, None]:
    """Gives every position its row; a damaged image's row is that of another one."""
    with shards.explain_read_errors(source.shards):
        for positions, indices, rows in batches:
            missing = np.flatnonzero(~np.isin(positions, rows["position"]))
            if len(missing):
                rows = {
                    name: np.insert(column, missing - np.arange(len(missing)), 0, axis=0)
                    for name, column in rows.items()
                }
                for place in missing:
                    row = replacements.row(int(positions[place]), int(indices[place]))
                    for name, column in rows.items():
                        column[place] = row[name]
            del rows["position"]
            check_labels(source, rows["label"])
            names = [name.removesuffix("/images") for name in rows if name.endswith("/images")]
            views = {n: Crops(rows.pop(f"{n}/images"), rows.pop(f"{n}/boxes")) for n in names}
            yield {**views, **rows}


def _padded(
    source: Source, batches: Iterator[Batch], empty: Batch, num_batches: int, local_size: int
) -> Generator[Batch, None, None]:
    """Pads every batch to one size, and the number of batches to that of the other hosts."""
    with shards.explain_read_errors(source.shards):
        for _ in range(num_batches):
            batch = next(batches, empty)
            check_labels(source, batch["label"])
            missing = local_size - len(batch["index"])
            yield {
                name: np.pad(
                    values,
                    [(0, missing)] + [(0, 0)] * (values.ndim - 1),
                    constant_values=0 if name == "image" else -1,
                )
                for name, values in batch.items()
                if name != "position"
            }

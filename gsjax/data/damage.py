"""Retries images that fail to decode, and replaces damaged ones in training."""

import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tqdm import tqdm

from gsjax.data import decode, shards
from gsjax.data.careful import careful
from gsjax.data.source import Source
from gsjax.errors import UserError
from gsjax.runtime.tensorflow_setup import tf

# (position, index, key) -> columns of a row.
ExampleFn = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]

_STREAM = 1  # separates these draws from those of (seed, epoch)
_NAMED = 5  # damaged images named in the last message

# Errors whose cause lies outside the image.
_EXTERNAL_ERRORS = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnavailableError,
)


class Replacements:
    """Replaces damaged images by others; reports and counts the damaged ones.

    The replacement is a function of the seed and the position, so neither a resume nor, with random
    access, the number of hosts changes it. Each host counts only the images it has met itself since
    it started.
    """

    def __init__(self, source: Source, seed: int, max_share: float, example_fn: ExampleFn) -> None:
        """Tolerates at most a share of `max_share` damaged images in the source."""
        self._source, self._seed, self._max_share = source, seed, max_share
        self._retry = _create_retry(source, example_fn)
        self._damaged: dict[int, None] = {}  # in the order in which they were found

    def row(self, position: int, index: int) -> dict[str, np.ndarray]:
        """Returns the columns of the row at a position whose own image has failed.

        Retries that image first, because storage can fail temporarily.

        Raises:
          UserError: too many images are damaged, or one cannot be read for another reason.
        """
        known = len(self._damaged)
        generator = np.random.default_rng([self._seed, position, _STREAM])
        used = index
        while (row := self._decode(position, used)) is None:
            used = int(generator.integers(self._source.num_examples))
        for number, found in enumerate(list(self._damaged)[known:], known + 1):
            # On the host that met it, since the others do not know; not in the progress line.
            tqdm.write(
                f"damaged  {self._source.image_name(found)} cannot be decoded: "
                f"using {self._source.image_name(used)} instead "
                f"({number} of {self._source.num_examples} images so far)",
                file=sys.stderr,
            )
        return row

    def _decode(self, position: int, index: int) -> dict[str, np.ndarray] | None:
        """Returns an image's columns; if it is damaged, notes that and returns None."""
        if index in self._damaged:
            return None
        row = self._retry(position, index)
        if row is None:
            self._damaged[index] = None
            self._check_share()
        return row

    def _check_share(self) -> None:
        count, total = len(self._damaged), self._source.num_examples
        if count <= self._max_share * total and count < total:
            return
        names = ", ".join(self._source.image_name(i) for i in list(self._damaged)[:_NAMED])
        more = f" and {count - _NAMED} more" if count > _NAMED else ""
        raise UserError(
            f"{count} of the {total} images of {self._source.name} ({count / total:.2%}) cannot "
            f"be decoded, more than data.max_damaged={self._max_share:g}: {names}{more}. They are "
            f"damaged, missing or not {decode.FORMATS}: fix or remove them, or raise "
            "--config.data.max_damaged"
        )


def retried(
    source: Source, batches: Iterable, example_fn: ExampleFn
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows of each batch, including those that succeed when retried.

    Storage can fail temporarily, and evaluations keep their features.

    Args:
      source: the images.
      batches: (positions [b], indices [b], rows [<= b] of what could be decoded).
      example_fn: computes a row.
    """
    retry = _create_retry(source, example_fn)
    for positions, indices, rows in batches:
        missing = np.flatnonzero(~np.isin(positions, rows["position"]))
        again = [retry(int(positions[place]), int(indices[place])) for place in missing]
        found = [row for row in again if row is not None]
        if found:
            added = {name: np.stack([row[name] for row in found]) for name in rows}
            if len(rows["position"]):  # otherwise their size is unknown
                added = {name: np.concatenate([rows[name], added[name]]) for name in rows}
            order = np.argsort(added["position"])
            rows = {name: column[order] for name, column in added.items()}
        yield rows


def _create_retry(
    source: Source, example_fn: ExampleFn
) -> Callable[[int, int], dict[str, np.ndarray] | None]:
    """Creates (position, index) -> columns of that one row; None if it is damaged.

    If the image fails again, tries a careful graph (`gsjax.data.careful`). Raises UserError if the
    cause lies outside the image. Lack of memory counts as such: no image needs much more than its
    pixels take, so others would fail as well.
    """

    def carefully(*args: tf.Tensor) -> dict[str, tf.Tensor]:
        with careful():
            return example_fn(*args)

    row_fns = [tf.function(fn, autograph=False) for fn in (example_fn, carefully)]

    def retry(position: int, index: int) -> dict[str, np.ndarray] | None:
        key = read_key(source, index)
        for row_fn in row_fns:
            try:
                row = row_fn(tf.constant(position, tf.int64), tf.constant(index, tf.int64), key)
                return {name: column.numpy() for name, column in row.items()}
            except _EXTERNAL_ERRORS as error:
                raise UserError(
                    f"{source.image_name(index)} cannot be read, though it may be intact "
                    f"({shards.short_message(error)}): check memory and storage, then rerun"
                ) from error
            except tf.errors.OpError:
                continue
        return None

    return retry


def read_key(source: Source, index: int) -> tf.Tensor:
    """Returns an image's key for `source.read`: its index or, without random access, its record."""
    if not source.shards:
        return tf.constant(index, tf.int64)
    shard = next(s for s in source.shards if s.first <= index < s.first + s.take)
    with shards.explain_read_errors([shard]):
        _, record = next(iter(shards.in_order([shard]).skip(index - shard.first)))
    return record

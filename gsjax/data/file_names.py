"""The names of image files that TFDS data sets record."""

from gsjax.runtime import tensorflow_setup  # noqa: F401  # TFDS imports TensorFlow

# isort: split
import contextlib
import os
from collections.abc import Callable

import tensorflow_datasets as tfds

from gsjax.data.batches import Batches
from gsjax.runtime.tensorflow_setup import tf

_FEATURE = "file_name"  # as in imagenet2012
_BATCH = 1024  # records parsed at a time


def reader(
    info: tfds.core.DatasetInfo, records: Callable[[], tf.data.Dataset]
) -> Callable[[], list[str]] | None:
    """Returns a function that reads the names, or None if the data set records none.

    Args:
      info: TFDS' description of the data set.
      records: returns the raw records of a split, in its order.
    """
    if not isinstance(dict(info.features.items()).get(_FEATURE), tfds.features.Text):
        return None
    spec = {_FEATURE: tf.io.FixedLenFeature([], tf.string)}

    def read() -> list[str]:
        parsed = records().batch(_BATCH).map(lambda batch: tf.io.parse_example(batch, spec))
        with contextlib.closing(Batches(parsed, lambda rows: (row for row in rows))) as batches:
            return [os.fsdecode(name) for batch in batches for name in batch[_FEATURE]]

    return read

"""Reads the names of image files that a TFDS data set records."""

import contextlib
import os
from collections.abc import Callable

from gsjax.data.batches import Batches
from gsjax.runtime.tensorflow_setup import tf

_BATCH = 1024  # records parsed at a time


def reader(feature: str, records: Callable[[], tf.data.Dataset]) -> Callable[[], list[str]] | None:
    """Returns a function that reads the names, or None if there are none.

    Args:
      feature: name of the feature that holds them, "" for none.
      records: returns the raw records of a split, in its order.
    """
    if not feature:
        return None
    spec = {feature: tf.io.FixedLenFeature([], tf.string)}

    def read() -> list[str]:
        parsed = records().batch(_BATCH).map(lambda batch: tf.io.parse_example(batch, spec))
        with contextlib.closing(Batches(parsed, lambda rows: (row for row in rows))) as batches:
            return [os.fsdecode(name) for batch in batches for name in batch[feature]]

    return read

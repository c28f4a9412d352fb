"""The iterator over a pipeline's batches, which never outlives its process.

The end of a tf.data iterator waits for the calls it has in flight. Some of them run Python, which
they no longer can once the interpreter has begun to finalize: then the process never ends.
"""

import atexit
import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator

import numpy as np
import tensorflow as tf

Batch = dict[str, np.ndarray]

_PREFETCHED = 1  # batches ahead of the one in use
_PATIENCE = 8.0  # seconds that the end of the process waits for a batch of another thread

_OPEN: weakref.WeakSet["Batches"] = weakref.WeakSet()


class Batches(Iterator[Batch]):
    """Batches of a tf.data pipeline.

    `close`, which `contextlib.closing` calls, ends the pipeline and waits for what it has in
    flight. What is still open when the process ends is closed then.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        batches_fn: Callable[[Iterator], Generator[Batch, None, None]],
    ) -> None:
        """Starts the pipeline.

        Args:
          dataset: the pipeline.
          batches_fn: makes the batches of the pipeline's elements, which are trees of NumPy arrays.
        """
        # Autotuning has a thread for which the end of every iterator waits, up to a minute.
        options = tf.data.Options()
        options.autotune.enabled = False
        dataset = dataset.prefetch(_PREFETCHED).with_options(options)
        self._batches = batches_fn(dataset.as_numpy_iterator())
        self._is_open = True
        self._turn = threading.Lock()
        _OPEN.add(self)

    def __next__(self) -> Batch:
        with self._turn:
            if not self._is_open:
                raise StopIteration
            return next(self._batches)

    def close(self) -> None:
        """Ends the pipeline; afterwards there are no more batches."""
        self._is_open = False
        with self._turn:
            self._batches.close()


def _close_all() -> None:
    end = time.monotonic() + _PATIENCE
    for batches in list(_OPEN):
        batches._is_open = False
        # A daemon thread may be taking a batch, and takes no other one.
        if batches._turn.acquire(timeout=max(end - time.monotonic(), 0.0)):
            with contextlib.suppress(Exception):  # nobody waits for the batches any more
                batches._batches.close()


atexit.register(_close_all)

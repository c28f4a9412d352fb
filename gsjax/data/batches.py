"""An iterator over a pipeline's batches that never keeps the process from exiting.

Destroying a tf.data iterator waits for its pending calls. Calls into Python never finish once the
interpreter is finalizing, so the process would hang.
"""

import atexit
import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

from gsjax.runtime.tensorflow_setup import tf

Batch = dict[str, Any]  # of arrays, and of `gsjax.crops.Crops`

_PREFETCHED = 1  # batches ahead of the one in use
_EXIT_TIMEOUT = 8.0  # seconds that exit waits for a batch of another thread

_OPEN: weakref.WeakSet["Batches"] = weakref.WeakSet()


class _Elements(Iterator):
    """The elements of a pipeline, until `close`.

    Frames that use this may live on in an exception's traceback; TensorFlow's iterator, which is
    referenced only here, does not.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._iterator: Iterator | None = dataset.as_numpy_iterator()

    def __next__(self) -> Any:
        if self._iterator is None:
            raise StopIteration
        return next(self._iterator)

    def close(self) -> None:
        """Ends the pipeline; waits for its pending calls."""
        self._iterator = None


class Batches(Iterator[Batch]):
    """Batches of a tf.data pipeline.

    `close`, which `contextlib.closing` calls, ends the pipeline and waits for its pending calls. An
    exception in the pipeline closes it, and so does process exit.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        batches_fn: Callable[[Iterator], Generator[Batch, None, None]],
    ) -> None:
        """Starts the pipeline.

        Args:
          dataset: the pipeline.
          batches_fn: makes batches from the pipeline's elements, which are trees of NumPy arrays.
        """
        # Autotuning has a thread that every iterator waits for at its end, up to a minute.
        options = tf.data.Options()
        options.autotune.enabled = False
        dataset = dataset.prefetch(_PREFETCHED).with_options(options)
        self._elements = _Elements(dataset)
        self._batches = batches_fn(self._elements)
        self._is_open = True
        self._lock = threading.Lock()
        _OPEN.add(self)

    def __next__(self) -> Batch:
        with self._lock:
            if not self._is_open:
                raise StopIteration
            try:
                return next(self._batches)
            except BaseException:
                self._end()
                raise

    def close(self) -> None:
        """Ends the pipeline; waits for a batch that another thread is taking."""
        self._is_open = False
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._batches.close()
        self._elements.close()


def _close_all() -> None:
    end = time.monotonic() + _EXIT_TIMEOUT
    for batches in list(_OPEN):
        batches._is_open = False
        # A daemon thread may still be taking a batch; it will not take another one.
        if batches._lock.acquire(timeout=max(end - time.monotonic(), 0.0)):
            with contextlib.suppress(Exception):  # the batches are no longer needed
                batches._end()


atexit.register(_close_all)

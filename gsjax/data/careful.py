"""Two graphs for images: a fast one that rejects unusual images, and a careful one for these.

A branch costs time for every image, and a graph cannot catch errors. So the graphs of the input
pipeline raise an error for unusual images, and `gsjax.data.damage` retries the failed ones in a
graph built while `careful` is active.
"""

import contextlib
import contextvars
from collections.abc import Iterator

from gsjax.runtime.tensorflow_setup import tf

_active = contextvars.ContextVar("careful", default=False)


@contextlib.contextmanager
def careful() -> Iterator[None]:
    """Makes the graphs built in this context careful ones."""
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


def in_graph() -> bool:
    """Whether a careful graph is being built."""
    return _active.get()


def invalid_if(condition: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns `size`, or -1, an invalid size, if the condition holds.

    Args:
      condition: bool [].
      size: int32 [] or [2], size of a result.
    """
    return tf.where(condition, -1, size)

"""Two graphs for pictures: a fast one that rejects unusual pictures, and a careful one for those.

A branch costs every picture its time, and a graph cannot catch an error. So the graphs of the input
pipeline raise for what they are not made for, and `gsjax.data.damage` tries the pictures that have
failed once more, in a graph that is built while `careful` is active.
"""

import contextlib
import contextvars
from collections.abc import Iterator

from gsjax.runtime.tensorflow_setup import tf

_active = contextvars.ContextVar("careful", default=False)


@contextlib.contextmanager
def careful() -> Iterator[None]:
    """Within, the graphs that are built are careful."""
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


def in_graph() -> bool:
    """Whether a careful graph is being built."""
    return _active.get()


def refused_if(condition: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns the size of a result, or -1, an invalid size, if the condition holds.

    Args:
      condition: bool [].
      size: int32 [] or [2].
    """
    return tf.where(condition, -1, size)

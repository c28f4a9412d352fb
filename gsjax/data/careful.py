"""Two graphs for pictures: one that is fast and refuses rare ones, and one that takes these too.

A branch costs every picture its time, and a graph cannot catch an error. So the graphs of the input
pipeline raise for what they are not made for, and `gsjax.data.damage` tries the pictures that have
failed once more, in a graph that is built while `careful` is active.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import tensorflow as tf

_active = contextvars.ContextVar("careful", default=False)


@contextlib.contextmanager
def careful() -> Iterator[None]:
    """Makes the graphs that are built meanwhile careful ones."""
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


def in_graph() -> bool:
    """Whether a careful graph is being built."""
    return _active.get()


def refused_if(condition: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """The size of a result; where the condition holds, one that every operation refuses."""
    return tf.where(condition, -1, size)

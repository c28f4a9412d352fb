"""Imports TensorFlow before anything else does: quiet, without accelerators and without Keras.

Importing Keras, which gsjax does not use, takes as long as TensorFlow itself. `tf.keras` still
loads on first use.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType

# TensorFlow reads both at import. The first silences its log messages except the oneDNN notice,
# which needs the second. 1 is what JAX sets if it is imported first.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
if os.path.expanduser("~") == "~":  # no home folder: Keras would create one called ~ here
    os.environ.setdefault("KERAS_HOME", os.devnull)


@contextlib.contextmanager
def stand_in(name: str, module: ModuleType | None) -> Iterator[None]:
    """Inside it, an import of `name` gets `module`, or fails if that is None.

    A module that has already been imported stays.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module  # type: ignore[assignment]  # None is allowed
    try:
        yield
    finally:
        del sys.modules[name]


with stand_in("keras.src.optimizers", None):  # TensorFlow does without if it cannot have them
    import tensorflow as tf

_callback = ModuleType("tensorboard.plugins.hparams._keras")
_callback.Callback = object  # type: ignore[attr-defined]  # for models of Keras
with stand_in(_callback.__name__, _callback):
    from clu import metric_writers  # noqa: F401

# Accelerators belong to JAX: TensorFlow would grab all their memory on its first operation.
for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

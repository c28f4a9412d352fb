"""Imports TensorFlow before anything else does: quiet, and without accelerators."""

import os

# TensorFlow reads both at import. The first silences its log messages except the oneDNN notice,
# which needs the second. 1 is what JAX sets if it is imported first.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
if os.path.expanduser("~") == "~":  # no home folder: Keras would create one called ~ here
    os.environ.setdefault("KERAS_HOME", os.devnull)

import tensorflow as tf

# Accelerators belong to JAX: TensorFlow would grab all their memory on its first operation.
for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

"""Imports TensorFlow, quiet and without the accelerators, before anything else does."""

import os

# TensorFlow reads both when it is imported: no notices, and none about oneDNN, which the first
# variable does not silence. 1 is what JAX sets where it is imported first.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
if os.path.expanduser("~") == "~":  # no home folder: Keras would make one called ~ here
    os.environ.setdefault("KERAS_HOME", os.devnull)

import tensorflow as tf

# The accelerators belong to JAX: TensorFlow would take all their memory with its first operation.
for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

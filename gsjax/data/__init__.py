"""Pictures in, batches out: sources, decoding, crops. Nothing else in gsjax imports TensorFlow."""

import tensorflow as tf

# The accelerators belong to JAX: TensorFlow would take all of their memory at its first operation.
for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

OpError = tf.errors.OpError  # whatever goes wrong in TensorFlow, its files among it

"""Pictures in, batches out: sources, decoding, crops."""

from gsjax.runtime import tensorflow_setup  # noqa: F401  # before any module here

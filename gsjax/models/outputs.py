"""What every encoder returns."""

from typing import NamedTuple

import jax


class Outputs(NamedTuple):
    """Representations of N images.

    Attributes:
      pooled: [N, F], one vector per image, in at least float32.
      maps: [N, h, w, C], one vector per spatial position, of the same dtype.
    """

    pooled: jax.Array
    maps: jax.Array

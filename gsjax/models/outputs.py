"""What every encoder returns."""

from typing import NamedTuple

import jax


class Outputs(NamedTuple):
    """Representations of N images.

    Attributes:
      pooled: [N, F], one vector per image, in float32 or wider.
      maps: [N, h, w, C], one vector per place of the image, of the same type.
    """

    pooled: jax.Array
    maps: jax.Array

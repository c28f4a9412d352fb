"""The layout of views: crops of a batch of images, grouped by size."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

ROUNDING = 1e-6
"""Error of an overlap in float32 that does not count."""

MAX_DRAWS = 100
"""Draws of two views whose overlap is restricted; then the closest one is used."""


class Crops(NamedTuple):
    """V views, all of one size, of each of B images, as NumPy or JAX arrays.

    A batch holds {"global": Crops}, and with multi-crop {"local": Crops} of a smaller size.

    Attributes:
      images: uint8 [B, V, S, S, 3].
      boxes: float32 [B, V, 4]: top, left, height, width in pixels of the original image.
    """

    images: Any
    boxes: Any


def of_batch(batch: Mapping[str, Any]) -> dict[str, Crops]:
    """Returns the columns of a batch that hold crops, the global ones first."""
    return {name: part for name, part in batch.items() if isinstance(part, Crops)}


def limits_overlap(settings: ml_collections.ConfigDict) -> bool:
    """Whether the group `crops` restricts the overlap of the global views."""
    return settings.min_overlap > 0 or settings.max_overlap < 1


def local_size(config: ml_collections.ConfigDict) -> int:
    """Returns the side length of the local views: of 0 in the config, 3/7 of the global ones'."""
    return config.crops.local_size or round(config.data.image_size * 3 / 7)

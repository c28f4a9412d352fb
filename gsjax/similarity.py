"""Graded similarity of two views of one image: crop boxes -> overlap -> psi.

A box is `[top, left, height, width]` in pixels of the original image. Every function is pure,
accepts any leading batch shape and computes in float32, or in float64 when given float64.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gsjax.crops import ROUNDING
from gsjax.errors import UserError


def intersection(boxes_i: ArrayLike, boxes_j: ArrayLike) -> jax.Array:
    """Returns the area two boxes share, in square pixels.

    Args:
      boxes_i: [..., 4] boxes.
      boxes_j: [..., 4] boxes, broadcastable with `boxes_i`.

    Returns:
      [...] areas, 0 for disjoint boxes.

    Raises:
      UserError: the last axis does not have size 4.
    """
    boxes_i, boxes_j = _boxes(boxes_i), _boxes(boxes_j)
    start_i, start_j = boxes_i[..., :2], boxes_j[..., :2]
    size_i, size_j = boxes_i[..., 2:], boxes_j[..., 2:]
    # min(ends) - max(starts), split into its four cases: the side of a contained box is returned
    # exactly, so rounding cannot push a ratio of areas above 1.
    inner = jnp.minimum(size_i, size_j)
    offset = start_i - start_j
    crossing = jnp.minimum(size_i + offset, size_j - offset)
    return jnp.prod(jnp.maximum(jnp.minimum(inner, crossing), 0), axis=-1)


def ioa(boxes_i: ArrayLike, boxes_j: ArrayLike) -> jax.Array:
    """Returns the intersection over the area of view i (IoA; thesis, section 4.2).

    Asymmetric: a small view inside a large one has IoA 1; the large one's IoA is smaller.

    Args:
      boxes_i: [..., 4] boxes of the views whose area is the denominator.
      boxes_j: [..., 4] boxes of the other views.

    Returns:
      [...] ratios in [0, 1]; 0 where box i has zero area.

    Raises:
      UserError: the last axis does not have size 4.
    """
    return _ratio(intersection(boxes_i, boxes_j), _area(boxes_i))


def iou(boxes_i: ArrayLike, boxes_j: ArrayLike) -> jax.Array:
    """Returns the intersection over union (Jaccard index), the symmetric alternative to `ioa`.

    Args:
      boxes_i: [..., 4] boxes.
      boxes_j: [..., 4] boxes, broadcastable with `boxes_i`.

    Returns:
      [...] ratios in [0, 1]; 0 where both boxes have zero area.

    Raises:
      UserError: the last axis does not have size 4.
    """
    shared = intersection(boxes_i, boxes_j)
    return _ratio(shared, _area(boxes_i) + _area(boxes_j) - shared)


def graded(overlap: ArrayLike, threshold: float) -> jax.Array:
    """Returns the graded similarity psi = min(overlap / threshold, 1) (thesis, eq. 5).

    At threshold 0, where eq. 5 is 0/0, psi is 1 everywhere: all views count as identical.

    Args:
      overlap: [...] IoA or IoU in [0, 1].
      threshold: lambda in [0, 1], a Python float; psi is 1 at this overlap and above.

    Returns:
      [...] psi in [0, 1].

    Raises:
      UserError: the threshold is outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"similarity threshold {threshold} is not in [0, 1]: choose e.g. 0.5")
    overlap = jnp.asarray(overlap)
    if threshold == 0:
        return jnp.ones_like(overlap)
    return jnp.minimum(overlap / threshold, 1)


def pairwise(boxes_i: ArrayLike, boxes_j: ArrayLike, measure: str, threshold: float) -> jax.Array:
    """Returns the graded similarity of every view i to every view j of the same image.

    Args:
      boxes_i: [B, V, 4] boxes of the anchors.
      boxes_j: [B, W, 4] boxes of the targets.
      measure: a key of `MEASURES`, or "none": psi is 1 everywhere.
      threshold: lambda, as in `graded`.

    Returns:
      [B, V, W] psi in [0, 1].

    Raises:
      UserError: the last axis does not have size 4, or the threshold is outside [0, 1].
    """
    boxes_i, boxes_j = _boxes(boxes_i), _boxes(boxes_j)
    if measure == "none":
        return jnp.ones((*boxes_i.shape[:2], boxes_j.shape[1]), boxes_i.dtype)
    # One target at a time: XLA would turn division by a broadcast area into multiplication by its
    # reciprocal, which rounds twice.
    targets = [boxes_j[:, w : w + 1] for w in range(boxes_j.shape[1])]
    overlap = jnp.stack([MEASURES[measure](boxes_i, target) for target in targets], axis=-1)
    return graded(overlap, threshold)


def is_outside(boxes: ArrayLike, measure: str, low: float, high: float) -> jax.Array:
    """Returns whether views overlap less than `low` or more than `high`, in either direction.

    Args:
      boxes: [B, 2, 4] boxes of two views.
      measure: a key of `MEASURES`.
      low: smallest allowed overlap.
      high: largest allowed overlap.

    Returns:
      [B] bool; rounding errors count as inside.

    Raises:
      UserError: the last axis does not have size 4.
    """
    boxes = _boxes(boxes)
    overlap = MEASURES[measure](boxes, boxes[:, ::-1])
    return jnp.any((overlap < low - ROUNDING) | (overlap > high + ROUNDING), axis=-1)


MEASURES = {"ioa": ioa, "iou": iou}
"""The overlap measures, by their names in `similarity.measure`."""


def _boxes(boxes: ArrayLike) -> jax.Array:
    boxes = jnp.asarray(boxes)
    if boxes.shape[-1:] != (4,):
        raise UserError(
            f"boxes of shape {boxes.shape}: the last axis must be [top, left, height, width]"
        )
    return boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))


def _area(boxes: ArrayLike) -> jax.Array:
    return jnp.prod(_boxes(boxes)[..., 2:], axis=-1)


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    # The compiler may fuse products into sums, which rounds differently; hence the bound.
    return jnp.minimum(part / jnp.where(whole > 0, whole, 1), 1)

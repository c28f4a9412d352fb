"""How much two views of one image share: crop boxes -> overlap -> graded similarity psi.

A box is `[top, left, height, width]` in pixels of the original image. Every function is pure,
takes any leading batch shape and works in float32, or in float64 when given float64.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gsjax.errors import UserError


def intersection(boxes_i: ArrayLike, boxes_j: ArrayLike) -> jax.Array:
    """Returns the area two boxes share, in square pixels.

    Args:
      boxes_i: [..., 4] boxes.
      boxes_j: [..., 4] boxes, of a shape that broadcasts with `boxes_i`.

    Returns:
      [...] areas, 0 for boxes that do not meet.

    Raises:
      UserError: the last axis is not of size 4.
    """
    boxes_i, boxes_j = _boxes(boxes_i), _boxes(boxes_j)
    start_i, start_j = boxes_i[..., :2], boxes_j[..., :2]
    size_i, size_j = boxes_i[..., 2:], boxes_j[..., 2:]
    # min(ends) - max(starts), written as its four cases: an inner side comes out exactly as given,
    # so that rounding cannot lift a ratio of areas above 1.
    inner = jnp.minimum(size_i, size_j)
    offset = start_i - start_j
    crossing = jnp.minimum(size_i + offset, size_j - offset)
    return jnp.prod(jnp.maximum(jnp.minimum(inner, crossing), 0), axis=-1)


def ioa(boxes_i: ArrayLike, boxes_j: ArrayLike) -> jax.Array:
    """Returns the intersection over the area of view i (IoA; thesis, section 4.2).

    Asymmetric: a small view inside a large one has IoA 1, the large one less.

    Args:
      boxes_i: [..., 4] boxes of the views whose area divides.
      boxes_j: [..., 4] boxes of the other views.

    Returns:
      [...] shares in [0, 1]; 0 where box i has no area.

    Raises:
      UserError: the last axis is not of size 4.
    """
    return _ratio(intersection(boxes_i, boxes_j), _area(boxes_i))


def iou(boxes_i: ArrayLike, boxes_j: ArrayLike) -> jax.Array:
    """Returns the intersection over union (Jaccard index), the symmetric alternative to `ioa`.

    Args:
      boxes_i: [..., 4] boxes.
      boxes_j: [..., 4] boxes, of a shape that broadcasts with `boxes_i`.

    Returns:
      [...] shares in [0, 1]; 0 where both boxes have no area.

    Raises:
      UserError: the last axis is not of size 4.
    """
    shared = intersection(boxes_i, boxes_j)
    return _ratio(shared, _area(boxes_i) + _area(boxes_j) - shared)


def graded(overlap: ArrayLike, threshold: float) -> jax.Array:
    """Returns the graded similarity psi = min(overlap / threshold, 1) (thesis, eq. 5).

    At threshold 0, where eq. 5 is 0/0, psi is 1 everywhere: all views count as the same.

    Args:
      overlap: [...] IoA or IoU in [0, 1].
      threshold: lambda in [0, 1], a Python float: from this overlap on, psi is 1.

    Returns:
      [...] psi in [0, 1].

    Raises:
      UserError: the threshold lies outside [0, 1].
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
      measure: a name in `MEASURES`, or none, where psi is 1 everywhere.
      threshold: lambda, as in `graded`.

    Returns:
      [B, V, W] psi in [0, 1].

    Raises:
      UserError: the last axis is not of size 4, or the threshold lies outside [0, 1].
    """
    boxes_i, boxes_j = _boxes(boxes_i), _boxes(boxes_j)
    if measure == "none":
        return jnp.ones((*boxes_i.shape[:2], boxes_j.shape[1]), boxes_i.dtype)
    # One target after another: XLA would turn the division by a broadcast area into a product with
    # its reciprocal, which rounds twice.
    targets = [boxes_j[:, w : w + 1] for w in range(boxes_j.shape[1])]
    overlap = jnp.stack([MEASURES[measure](boxes_i, target) for target in targets], axis=-1)
    return graded(overlap, threshold)


MEASURES = {"ioa": ioa, "iou": iou}
"""The measures of overlap, by their names in `similarity.measure`."""


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
    # A compiler may fuse products into sums and round them differently: hence the bound.
    return jnp.minimum(part / jnp.where(whole > 0, whole, 1), 1)

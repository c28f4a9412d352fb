"""Draws random crop boxes; crops and resizes images."""

import functools
import math
from collections.abc import Callable, Sequence

import ml_collections

from gsjax.config import per_view
from gsjax.crops import MAX_DRAWS, ROUNDING
from gsjax.data import careful
from gsjax.runtime.tensorflow_setup import tf

_TRIES = 10
_MIN_RATIO, _MAX_RATIO = 3 / 4, 4 / 3  # width / height
_MAX_ATTEMPTS = 100  # of crop=tf, as in google-research/simclr data_util.py
_MAX_INTERMEDIATE = 2**24  # pixels between two passes, 12 bytes each
# Folded into an image's seed, like the number of a pair of views, which is smaller.
_LOCAL, _REDRAWS = 2**15, 2**16
_KERNELS = {"bilinear": ("triangle", 1), "bicubic": ("keyscubic", 2)}  # with their radius

_Views = Sequence[ml_collections.ConfigDict]  # the settings of two views


def random_resized_crop_boxes(
    seed: tf.Tensor,
    size: tf.Tensor,
    settings: ml_collections.ConfigDict,
    num_views: int = 2,
    overlap: ml_collections.ConfigDict | None = None,
) -> tf.Tensor:
    """Draws the crop boxes of an image's global views.

    `settings.crop` is `torchvision` (torchvision's RandomResizedCrop.get_params), `tf`
    (tf.image.stateless_sample_distorted_bounding_box with SimCLR's arguments) or `byol` (a crop
    that does not fit is clamped, not redrawn: google-deepmind/deepmind-research,
    byol/utils/dataset.py).

    Args:
      seed: int [2]; the boxes depend only on it and on the size.
      size: int [2], height and width of the image in pixels.
      settings: the group `augment` of a config: `crop`; `min_scale` and `max_scale`, the crop's
        area as a fraction of the image's, of all views or of each.
      num_views: V; the boxes of the first views do not depend on it.
      overlap: the group `crops`, if it restricts the overlap of views 1 and 2, 3 and 4, ... Two
        views out of its range are redrawn up to 100 times; then the closest draw counts.

    Returns:
      float32 [V, 4], one box per view: top, left, height, width in whole pixels of the image.
    """
    pairs = range((num_views + 1) // 2)
    views = per_view.augmentations(settings, 2 * len(pairs))
    boxes = []
    for pair in pairs:
        draw = functools.partial(_two_boxes, size=size, views=views[2 * pair : 2 * pair + 2])
        own = tf.random.fold_in(seed, pair) if pair else seed
        boxes.append(_in_range(draw, own, overlap) if overlap else draw(own))
    if num_views == 2:  # every operation counts: small images take under 0.1 ms
        return boxes[0]
    return tf.concat(boxes, axis=0)[:num_views]


def local_boxes(
    seed: tf.Tensor, size: tf.Tensor, crop: str, settings: ml_collections.ConfigDict
) -> tf.Tensor:
    """Draws the crop boxes of an image's local views (multi-crop; SwAV, section 3.2).

    Args:
      seed: int [2], as for the global views, whose boxes stay the same.
      size: int [2], height and width of the image in pixels.
      crop: `augment.crop`, see `random_resized_crop_boxes`.
      settings: the group `crops`.

    Returns:
      float32 [V, 4] boxes of the `settings.local_views` views.
    """
    scales = {"min_scale": settings.local_min_scale, "max_scale": settings.local_max_scale}
    own = ml_collections.ConfigDict({"crop": crop, **scales})
    return random_resized_crop_boxes(
        tf.random.fold_in(seed, _LOCAL), size, own, settings.local_views
    )


def _in_range(
    draw: Callable[[tf.Tensor], tf.Tensor], seed: tf.Tensor, settings: ml_collections.ConfigDict
) -> tf.Tensor:
    """The first of the draws [2, 4] whose overlap is in the range, or the closest to it."""

    def distance(boxes: tf.Tensor) -> tf.Tensor:
        found = _overlap(boxes, settings.overlap)
        outside = tf.maximum(settings.min_overlap - found, found - settings.max_overlap)
        return tf.reduce_max(outside)

    def is_outside(attempt: tf.Tensor, boxes: tf.Tensor, least: tf.Tensor) -> tf.Tensor:
        del boxes
        return (attempt < MAX_DRAWS) & (least > ROUNDING)

    def redraw(attempt: tf.Tensor, boxes: tf.Tensor, least: tf.Tensor) -> tuple[tf.Tensor, ...]:
        other = draw(tf.random.fold_in(seed, _REDRAWS + attempt))
        found = distance(other)
        return attempt + 1, tf.where(found < least, other, boxes), tf.minimum(found, least)

    first = draw(seed)
    return tf.while_loop(is_outside, redraw, (1, first, distance(first)))[1]


def _overlap(boxes: tf.Tensor, measure: str) -> tf.Tensor:
    """The overlap of boxes [2, 4] as in `gsjax.similarity`: [2] from each to the other."""
    start, extent = boxes[:, :2], boxes[:, 2:]
    sides = tf.reduce_min(start + extent, axis=0) - tf.reduce_max(start, axis=0)
    shared = tf.reduce_prod(tf.maximum(sides, 0))
    area = tf.reduce_prod(extent, axis=-1)
    return shared / (area if measure == "ioa" else tf.reduce_sum(area) - shared)


def _two_boxes(seed: tf.Tensor, size: tf.Tensor, views: _Views) -> tf.Tensor:
    if views[0].crop == "tf":
        return _tf_boxes(seed, size, views)
    size = tf.cast(size, tf.float32)
    height, width = size[0], size[1]
    draws = tf.random.stateless_uniform([2, 2 * _TRIES + 2], seed)
    ranges = [(view.min_scale, view.max_scale - view.min_scale) for view in views]
    smallest, span = ranges[0]
    if ranges[0] != ranges[1]:
        smallest, span = (
            tf.constant([*part], tf.float32)[:, None] for part in zip(*ranges, strict=True)
        )
    area = smallest + span * draws[:, :_TRIES]
    area *= height * width
    log_ratio = math.log(_MIN_RATIO) + math.log(_MAX_RATIO / _MIN_RATIO) * draws[:, _TRIES:-2]
    ratio = tf.exp(log_ratio)
    sides = tf.round(tf.sqrt(tf.stack([area / ratio, area * ratio], axis=-1)))  # [2, tries, 2]
    if views[0].crop == "byol":
        chosen = tf.clip_by_value(sides[:, 0], 1.0, size)
        corner = tf.floor(draws[:, -2:] * (size - chosen + 1))
        return tf.concat([corner, chosen], axis=-1)
    fits = tf.reduce_all((sides > 0) & (sides <= size), axis=-1)
    first = tf.argmax(tf.cast(fits, tf.int32), axis=-1)
    chosen = tf.gather(sides, first, axis=1, batch_dims=1)
    corner = tf.floor(draws[:, -2:] * (size - chosen + 1))
    drawn = tf.concat([corner, chosen], axis=-1)
    return tf.where(tf.reduce_any(fits, axis=1, keepdims=True), drawn, _central_box(height, width))


def _central_box(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """The largest central crop with an allowed aspect ratio, torchvision's fallback: [4]."""
    crop_height = tf.minimum(height, tf.round(width / _MIN_RATIO))
    crop_width = tf.minimum(width, tf.round(height * _MAX_RATIO))
    top = (height - crop_height) // 2
    left = (width - crop_width) // 2
    return tf.stack([top, left, crop_height, crop_width])


def _tf_boxes(seed: tf.Tensor, size: tf.Tensor, views: _Views) -> tf.Tensor:
    boxes = []
    for view_seed, view in zip(tf.unstack(tf.random.split(seed, 2)), views, strict=True):
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.concat([tf.cast(size, tf.int32), [3]], axis=0),
            bounding_boxes=tf.zeros([1, 0, 4]),
            seed=view_seed,
            min_object_covered=0.1,
            aspect_ratio_range=(_MIN_RATIO, _MAX_RATIO),
            area_range=(view.min_scale, view.max_scale),
            max_attempts=_MAX_ATTEMPTS,
            use_image_if_no_bounding_boxes=True,
        )
        boxes.append(tf.concat([begin[:2], extent[:2]], axis=0))
    return tf.cast(tf.stack(boxes), tf.float32)


def crop_and_resize(
    image: tf.Tensor, box: tf.Tensor, size: int, method: str = "bilinear"
) -> tf.Tensor:
    """Crops an image to a box and resizes it with antialiasing, as Pillow does.

    Args:
      image: uint8 [H, W, 3].
      box: [4], top, left, height, width in whole pixels, inside the image.
      size: side of the result.
      method: bilinear or bicubic.

    Returns:
      uint8 [size, size, 3].
    """
    top, left, height, width = tf.unstack(tf.cast(box, tf.int32), 4)
    crop = image[top : top + height, left : left + width]
    return tf.ensure_shape(resize(crop, (size, size), method), [size, size, 3])


def resize(
    image: tf.Tensor, size: tuple[int, int] | tf.Tensor, method: str = "bilinear"
) -> tf.Tensor:
    """Resizes an image with antialiasing, as Pillow does.

    Args:
      image: uint8 [H, W, 3].
      size: height and width of the result.
      method: bilinear or bicubic.

    Returns:
      uint8 [*size, 3].
    """
    if method == "bicubic":  # overshoots, and Pillow clips after each of its two passes
        height, width = tf.unstack(tf.convert_to_tensor(size))
        sides = tf.stack([tf.shape(image)[0], width])
        wide = tf.cond(  # same pixels; the second way does not recompute unchanged rows
            tf.shape(image)[1] <= width,
            lambda: _height_first(image, sides, method),
            lambda: _width_first(image, sides, method),
        )
        return _height_first(wide, tf.stack([height, width]), method)
    # Antialiasing changes nothing if both sides grow, and makes the op 3 times slower.
    return tf.cond(
        tf.reduce_all(tf.shape(image)[:2] <= size),
        lambda: _rounded(tf.image.resize(image, size, method)),
        lambda: _antialiased(image, tf.convert_to_tensor(size), method),
    )


def _antialiased(image: tf.Tensor, size: tf.Tensor, method: str) -> tf.Tensor:
    """Resizes with bounded memory (see `gsjax.data.careful`).

    The better of the two ways keeps at most sqrt(H * W * size[0] * size[1]) pixels.
    """
    too_large = size[0] > _MAX_INTERMEDIATE // tf.shape(image)[1]
    if careful.in_graph() or tf.executing_eagerly():
        return tf.cond(
            too_large,
            lambda: _width_first(image, size, method),
            lambda: _height_first(image, size, method),
        )
    return _height_first(image, careful.invalid_if(too_large, size), method)


def _height_first(image: tf.Tensor, size: tf.Tensor, method: str) -> tf.Tensor:
    """Keeps float32 [size[0], W, 3]: the op resizes the height first."""
    return _rounded(tf.image.resize(image, size, method, antialias=True))


def _width_first(image: tf.Tensor, size: tf.Tensor, method: str) -> tf.Tensor:
    """Keeps float32 [size[1], H, 3]."""
    turned = _height_first(tf.transpose(image, [1, 0, 2]), size[::-1], method)
    return tf.transpose(turned, [1, 0, 2])


def _rounded(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(tf.round(values), 0, 255), tf.uint8)


def central_square(image: tf.Tensor, size: int, short_side: int, method: str) -> tf.Tensor:
    """Resizes the short side and cuts out the central square, computing only these pixels.

    Equals `resize` and `central_crop` up to about 1 of 255, but its memory use does not grow with
    the long side.

    Args:
      image: uint8 [H, W, 3].
      size: side of the square.
      short_side: short side of the resized image, >= size; the long side is rounded down.
      method: bilinear or bicubic.

    Returns:
      uint8 [size, size, 3].
    """
    kernel, radius = _KERNELS[method]
    whole = tf.shape(image, tf.int64)[:2]
    scaled = whole * short_side // tf.reduce_min(whole)
    scale = tf.cast(scaled, tf.float64) / tf.cast(whole, tf.float64)
    corner = tf.round(tf.cast(scaled - size, tf.float64) / 2)  # in pixels of the result
    margin = radius * tf.maximum(1 / scale, 1.0) + 1  # in pixels of the image
    first = tf.maximum(tf.cast(tf.floor(corner / scale - margin), tf.int64), 0)
    last = tf.minimum(tf.cast(tf.math.ceil((corner + size) / scale + margin), tf.int64), whole)
    part = image[first[0] : last[0], first[1] : last[1]]
    shift = tf.cast(tf.cast(first, tf.float64) * scale - corner, tf.float32)
    scale = tf.cast(scale, tf.float32)

    def placed(part: tf.Tensor, sides: tuple, scale: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        values = tf.raw_ops.ScaleAndTranslate(
            images=part[None], size=sides, scale=scale, translation=shift, kernel_type=kernel
        )
        return _rounded(values[0])

    if method == "bicubic":  # in two passes, as in `resize`
        height = tf.shape(part)[0]
        part = placed(part, (height, size), [1.0, scale[1]], [0.0, shift[1]])
        scale, shift = tf.stack([scale[0], 1.0]), tf.stack([shift[0], 0.0])
    return tf.ensure_shape(placed(part, (size, size), scale, shift), [size, size, 3])


def central_crop(image: tf.Tensor, size: int) -> tf.Tensor:
    """Cuts out the central square of an image, rounding as torchvision's CenterCrop does.

    Args:
      image: uint8 [H, W, 3] with H, W >= size.
      size: side of the square.

    Returns:
      uint8 [size, size, 3].
    """
    margin = tf.cast(tf.shape(image)[:2] - size, tf.float32) / 2
    top, left = tf.unstack(tf.cast(tf.round(margin), tf.int32), 2)
    return tf.ensure_shape(image[top : top + size, left : left + size], [size, size, 3])

"""Random crops of an image, and the resizing of crops."""

import math

import ml_collections
import tensorflow as tf

_TRIES = 10
_MIN_RATIO, _MAX_RATIO = 3 / 4, 4 / 3  # width / height
_MAX_ATTEMPTS = 100  # of the `tf` law, as in google-research/simclr data_util.py


def random_resized_crop_boxes(
    seed: tf.Tensor, size: tf.Tensor, settings: ml_collections.ConfigDict
) -> tf.Tensor:
    """Draws the crop boxes of an image's two views.

    `settings.crop` names the law: `torchvision` (torchvision's RandomResizedCrop.get_params), `tf`
    (tf.image.stateless_sample_distorted_bounding_box with SimCLR's arguments) or `byol` (a crop
    that does not fit is clamped, not drawn again: google-deepmind/deepmind-research,
    byol/utils/dataset.py).

    Args:
      seed: int [2], all that the boxes depend on besides the size.
      size: int [2], height and width of the image in pixels.
      settings: the group `augment` of a config: `crop`, `min_scale` and `max_scale`, the crop's
        area as a share of the image's.

    Returns:
      float32 [2, 4], one box a view: top, left, height, width in whole pixels of the image.
    """
    if settings.crop == "tf":
        return _tf_boxes(seed, size, settings)
    size = tf.cast(size, tf.float32)
    height, width = size[0], size[1]
    draws = tf.random.stateless_uniform([2, 2 * _TRIES + 2], seed)
    area = settings.min_scale + (settings.max_scale - settings.min_scale) * draws[:, :_TRIES]
    area *= height * width
    log_ratio = math.log(_MIN_RATIO) + math.log(_MAX_RATIO / _MIN_RATIO) * draws[:, _TRIES:-2]
    ratio = tf.exp(log_ratio)
    sides = tf.round(tf.sqrt(tf.stack([area / ratio, area * ratio], axis=-1)))  # [2, tries, 2]
    if settings.crop == "byol":
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
    """The largest central crop with a permitted ratio, torchvision's last resort: [4]."""
    crop_height = tf.minimum(height, tf.round(width / _MIN_RATIO))
    crop_width = tf.minimum(width, tf.round(height * _MAX_RATIO))
    top = (height - crop_height) // 2
    left = (width - crop_width) // 2
    return tf.stack([top, left, crop_height, crop_width])


def _tf_boxes(seed: tf.Tensor, size: tf.Tensor, settings: ml_collections.ConfigDict) -> tf.Tensor:
    boxes = []
    for view_seed in tf.unstack(tf.random.split(seed, 2)):
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.concat([tf.cast(size, tf.int32), [3]], axis=0),
            bounding_boxes=tf.zeros([1, 0, 4]),
            seed=view_seed,
            min_object_covered=0.1,
            aspect_ratio_range=(_MIN_RATIO, _MAX_RATIO),
            area_range=(settings.min_scale, settings.max_scale),
            max_attempts=_MAX_ATTEMPTS,
            use_image_if_no_bounding_boxes=True,
        )
        boxes.append(tf.concat([begin[:2], extent[:2]], axis=0))
    return tf.cast(tf.stack(boxes), tf.float32)


def crop_and_resize(image: tf.Tensor, box: tf.Tensor, size: int) -> tf.Tensor:
    """Cuts a box out of an image and resizes it, bilinear with antialiasing as Pillow does.

    Args:
      image: uint8 [H, W, 3].
      box: [4], top, left, height, width in whole pixels, inside the image.
      size: side of the result.

    Returns:
      uint8 [size, size, 3].
    """
    top, left, height, width = tf.unstack(tf.cast(box, tf.int32), 4)
    crop = image[top : top + height, left : left + width]
    return resize(crop, (size, size))


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
        wide = _resize(image, tf.stack([tf.shape(image)[0], width]), method, antialias=True)
        return _resize(wide, tf.stack([height, width]), method, antialias=True)
    # Antialiasing changes nothing where both sides grow, and makes the operation 3 times slower.
    return tf.cond(
        tf.reduce_all(tf.shape(image)[:2] <= size),
        lambda: _resize(image, size, method, antialias=False),
        lambda: _resize(image, size, method, antialias=True),
    )


def _resize(
    image: tf.Tensor, size: tuple[int, int] | tf.Tensor, method: str, antialias: bool
) -> tf.Tensor:
    resized = tf.image.resize(image, size, method=method, antialias=antialias)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def central_crop(image: tf.Tensor, size: int) -> tf.Tensor:
    """The central square of an image, rounded as torchvision's CenterCrop does.

    Args:
      image: uint8 [H, W, 3] with H, W >= size.
      size: side of the square.

    Returns:
      uint8 [size, size, 3].
    """
    margin = tf.cast(tf.shape(image)[:2] - size, tf.float32) / 2
    top, left = tf.unstack(tf.cast(tf.round(margin), tf.int32), 2)
    return tf.ensure_shape(image[top : top + size, left : left + size], [size, size, 3])

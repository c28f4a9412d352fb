"""Transforms of whole images to encoder inputs, for evaluations.

A transform is a TensorFlow function (index, image uint8 [H, W, 3]) -> uint8 [h, w, 3]; its `repr`
identifies it where features are kept.
"""

import dataclasses
import math

import ml_collections

from gsjax.data import careful, crops
from gsjax.runtime.tensorflow_setup import tf

_UNTOUCHED_SIZE = 96  # up to this side, as in CIFAR10 and STL10
_SHORT_SIDE_RATIO = 256 / 224  # for larger images, before the central crop
_MAX_RATIO = 16  # largest aspect ratio of an image resized whole before its central crop


@dataclasses.dataclass(frozen=True)
class CentralSquare:
    """Resizes the short side, then cuts out the central `size` x `size` pixels."""

    size: int
    short_side: int
    method: str = "bilinear"

    def __call__(self, index: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        del index
        size = tf.shape(image)[:2]
        long = tf.reduce_max(size) > _MAX_RATIO * tf.reduce_min(size)
        # torchvision's Resize rounds down, too.
        scaled = size * self.short_side // tf.reduce_min(size)

        def whole(scaled: tf.Tensor) -> tf.Tensor:
            return crops.central_crop(crops.resize(image, scaled, self.method), self.size)

        if careful.in_graph() or tf.executing_eagerly():
            return tf.cond(
                long,
                lambda: crops.central_square(image, self.size, self.short_side, self.method),
                lambda: whole(scaled),
            )
        return whole(careful.invalid_if(long, scaled))


@dataclasses.dataclass(frozen=True)
class Stretched:
    """Resizes to `size` x `size` pixels, ignoring the aspect ratio."""

    size: int

    def __call__(self, index: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        del index
        resized = crops.resize(image, (self.size, self.size))
        return tf.ensure_shape(resized, [self.size, self.size, 3])


@dataclasses.dataclass(frozen=True)
class LongSide:
    """Shrinks the longer side to `size` pixels, and both sides by `scale`; never enlarges."""

    size: int
    scale: float = 1.0

    def __call__(self, index: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        del index
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        factor = tf.minimum(self.size / tf.reduce_max(size), 1.0) * self.scale
        return crops.resize(image, tf.maximum(tf.cast(tf.round(size * factor), tf.int32), 1))


@dataclasses.dataclass(frozen=True)
class Cropped:
    """Crops each image to its own box before another transform.

    Attributes:
      boxes: (x0, y0, x1, y1) in pixels for each index; clipped to the image.
      then: transform of the crop.
    """

    boxes: tuple[tuple[float, float, float, float], ...]
    then: "Transform"

    def __call__(self, index: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
        x0, y0, x1, y1 = tf.unstack(tf.gather(tf.constant(self.boxes, tf.float32), index))
        # Pillow's crop, which the benchmark's code uses, rounds each side to the nearest pixel.
        left, right = (tf.cast(tf.clip_by_value(tf.round(x), 0, width), tf.int32) for x in (x0, x1))
        top, bottom = (
            tf.cast(tf.clip_by_value(tf.round(y), 0, height), tf.int32) for y in (y0, y1)
        )
        return self.then(index, image[top:bottom, left:right])


Transform = CentralSquare | Stretched | LongSide | Cropped


def central(size: int, method: str = "bilinear", crop_pct: float = 0.0) -> CentralSquare:
    """Returns the transform of kNN and linear evaluation for S x S encoder inputs.

    Args:
      size: S.
      method: interpolation, bilinear or bicubic.
      crop_pct: S / short side of the resized image. If 0, 1 up to S = 96, where an S x S image is
        left unchanged, and 224 / 256 above.
    """
    # timm rounds down as well; the small number keeps S / (S / n) at n.
    short_side = math.floor(size / crop_pct + 1e-6) if crop_pct else size
    if not crop_pct and size > _UNTOUCHED_SIZE:
        short_side = round(size * _SHORT_SIDE_RATIO)
    return CentralSquare(size, short_side, method)


def of_config(config: ml_collections.ConfigDict) -> CentralSquare:
    """Returns `central` with the settings of a config."""
    settings = config.features
    return central(config.data.image_size, settings.interpolation, settings.crop_pct)


def transfer(size: int) -> CentralSquare:
    """Returns the transform of transfer learning: bicubic to a short side of S (SimCLR, B.8)."""
    return CentralSquare(size, size, "bicubic")

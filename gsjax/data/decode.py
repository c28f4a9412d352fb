"""Encoded pictures to RGB arrays."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

_HEAD = 65536  # bytes searched for an orientation: metadata stands before the pixels
_PNG_DEPTH = 24  # offset of the bit depth in a PNG file


# Always a graph: there alone numpy_function hands bytes over whole and raises an OpError.
@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes one picture to RGB, upright.

    The content decides on the decoder, not the file's name. JPEG and PNG of up to 8 bits are
    decoded by TensorFlow; everything else, and whatever may carry an orientation, by Pillow.
    Transparency is dropped, and 16-bit values are divided by 257.

    Args:
      encoded: string [], the bytes of a JPEG, PNG, WebP or BMP file.

    Returns:
      uint8 [H, W, 3].

    Raises:
      tf.errors.OpError: the picture is damaged or of an unknown format.
    """
    jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    png = tf.strings.substr(encoded, 0, 8) == b"\x89PNG\r\n\x1a\n"
    deep = tf.strings.substr(tf.strings.join([encoded, b"\0" * 32]), _PNG_DEPTH, 1) == b"\x10"
    head = tf.strings.substr(encoded, 0, _HEAD)
    turned = tf.strings.regex_full_match(head, r"(?s)\C*(Exif|eXIf|tiff:Orientation)\C*")
    image = tf.cond(
        (jpeg | (png & ~deep)) & ~turned,
        # This operation takes PNG files as well, which some data sets hold under the name .JPEG.
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.numpy_function(_decode_with_pillow, [encoded], tf.uint8, stateful=False),
    )
    return tf.ensure_shape(image, [None, None, 3])


def _decode_with_pillow(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 255
            grey = np.rint(np.asarray(image, np.float32) / 257).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if "transparency" in image.info:  # Pillow warns when it goes from palette to RGB at once
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))

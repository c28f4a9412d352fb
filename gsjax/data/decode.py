"""Encoded pictures to RGB arrays."""

import io
import warnings

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

# Some kilobytes can claim any size. Pillow's own limit, a quarter of a gigabyte of RGB, is above
# what cameras make.
MAX_PIXELS = 89_478_485
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow's others run programs (EPS) or load plug-ins
# Whatever may hold an orientation that Pillow obeys, wherever it stands in the file.
_TURNED = r"(?s)\C*(Exif|eXIf|tiff:Orientation|XML:com\.adobe\.xmp|Raw profile type)\C*"
_PNG_SIZE, _PNG_DEPTH = 16, 24  # offsets of width and height, and of the bit depth in a PNG file

# Above its limit Pillow only warns, and prints that; such a picture is refused here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


# Always a graph: there alone numpy_function hands bytes over whole and raises an OpError.
@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes one picture to RGB, upright.

    The content decides on the decoder, not the file's name. JPEG and PNG of up to 8 bits are
    decoded by TensorFlow; everything else, CMYK, and whatever may carry an orientation, by Pillow.
    Transparency is dropped. Of 16-bit values, grey ones are divided by 257; of colours the low
    byte is dropped, as Pillow does.

    Args:
      encoded: string [], the bytes of a JPEG, PNG, WebP or BMP file.

    Returns:
      uint8 [H, W, 3].

    Raises:
      tf.errors.OpError: the picture is damaged, of an unknown format, or its header says that it
        has more than `MAX_PIXELS`; then nothing of it is decoded.
    """
    jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    png = tf.strings.substr(encoded, 0, 8) == b"\x89PNG\r\n\x1a\n"
    header = tf.strings.join([tf.strings.substr(encoded, 0, 32), b"\0" * 32])
    deep = tf.strings.substr(header, _PNG_DEPTH, 1) == b"\x10"
    turned = tf.strings.regex_full_match(encoded, _TURNED)
    png_size = tf.io.decode_raw(
        tf.strings.substr(header, _PNG_SIZE, 8), tf.int32, little_endian=False, fixed_length=8
    )
    height, width, channels = tf.unstack(
        tf.cond(
            jpeg,
            lambda: tf.io.extract_jpeg_shape(encoded),
            lambda: tf.concat([png_size, [3]], axis=0),
        ),
        num=3,
    )
    small = tf.cast(height, tf.int64) * tf.cast(width, tf.int64) <= MAX_PIXELS
    image = tf.cond(
        ((jpeg & (channels != 4)) | (png & ~deep)) & small & ~turned,
        # This operation takes PNG files as well, which some data sets hold under the name .JPEG.
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.numpy_function(_decode_with_pillow, [encoded], tf.uint8, stateful=False),
    )
    return tf.ensure_shape(image, [None, None, 3])


def _decode_with_pillow(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded), formats=_FORMATS) as file:
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"{file.width} x {file.height} pixels, more than {MAX_PIXELS}")
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 255
            grey = np.rint(np.asarray(image, np.float32) / 257).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if "transparency" in image.info:  # Pillow warns when it goes from palette to RGB at once
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))

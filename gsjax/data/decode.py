"""Decodes images to RGB arrays."""

import io
import warnings

import numpy as np
from PIL import Image, TiffImagePlugin

from gsjax.data import careful, metadata
from gsjax.runtime.tensorflow_setup import tf

# A few kilobytes can claim any size. Pillow's own limit, a quarter of a gigabyte of RGB, is above
# what cameras produce. The limit on a side is libpng's.
MAX_PIXELS, MAX_SIDE = 89_478_485, 1_000_000
FORMATS = "JPEG, PNG, WebP, BMP or TIFF"  # for messages
# Pillow's other formats run programs (EPS) or load plug-ins.
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# Anything that may hold an orientation that Pillow honors, anywhere in the file.
_TURNED = r"(?s)\C*(Exif|eXIf|tiff:Orientation|XML:com\.adobe\.xmp|Raw profile type|tEXtexif)\C*"
_PNG_SIZE, _PNG_DEPTH = 16, 24  # offsets of width and height, and of the bit depth in a PNG file
_UPRIGHT = {  # by orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TAG_BITS, _TAG_PHOTOMETRIC, _TAG_TILE_WIDTH, _TAG_TILE_LENGTH = 258, 262, 322, 323
_WHITE_IS_ZERO = 0  # a photometric interpretation
_MAX_TILE = 2**24  # pixels of a TIFF tile, unless the image has more

# Silence Pillow; images above its size limit are rejected here.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes one image to upright RGB.

    The content determines the decoder, not the file name. TensorFlow decodes JPEG and PNG of up to
    8 bits; Pillow decodes everything else, CMYK, and anything that may carry an orientation.
    Outside graphs, Pillow also tries what TensorFlow rejects; in graphs, see `gsjax.data.careful`.

    Transparency is dropped. 16-bit gray values are divided by 257; 16-bit colors lose their low
    byte, as in Pillow. Of several pages or frames, the first one is decoded. Unreadable metadata
    counts as absent: no orientation, no damage.

    Args:
      encoded: string [], the bytes of a JPEG, PNG, WebP, BMP or TIFF file.

    Returns:
      uint8 [H, W, 3].

    Raises:
      tf.errors.OpError: the image is damaged or of an unknown format, or its header claims more
        than `MAX_PIXELS` pixels or a side of more than `MAX_SIDE`; then nothing is decoded. Also
        raised for TIFF files with signed, 32-bit or floating-point values, whose range is unknown,
        or with colors that Pillow cannot convert to RGB (CIELAB).
    """
    if careful.in_graph():
        return _decode_slowly(encoded)
    if not tf.executing_eagerly():
        return _decode_fast(encoded)
    try:
        return _decode_fast(encoded)
    except tf.errors.OpError:
        return _decode_slowly(encoded)


# Always graphs: only there does numpy_function pass bytes intact and raise an OpError.
@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def _decode_fast(encoded: tf.Tensor) -> tf.Tensor:
    jpeg = tf.strings.substr(encoded, 0, 3) == metadata.JPEG
    png = tf.strings.substr(encoded, 0, 8) == metadata.PNG
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
        # This op also decodes PNG files, which some data sets contain under the name .JPEG.
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.numpy_function(_decode_with_pillow, [encoded], tf.uint8, stateful=False),
    )
    return tf.ensure_shape(image, [None, None, 3])


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def _decode_slowly(encoded: tf.Tensor) -> tf.Tensor:
    image = tf.numpy_function(_decode_with_pillow, [encoded], tf.uint8, stateful=False)
    return tf.ensure_shape(image, [None, None, 3])


def _decode_with_pillow(encoded: bytes) -> np.ndarray:
    plain, orientation = metadata.split(encoded)
    with Image.open(io.BytesIO(plain), formats=_PILLOW_FORMATS) as file:
        if file.width * file.height > MAX_PIXELS or max(file.size) > MAX_SIDE:
            raise ValueError(
                f"{file.width} x {file.height} pixels: the limits are {MAX_PIXELS} in all and "
                f"{MAX_SIDE} per side"
            )
        if isinstance(file, TiffImagePlugin.TiffImageFile):
            _check_tiles(file)
        file.load()
        image: Image.Image = file
        if file.mode in ("I", "F"):
            raise ValueError("signed, 32-bit and floating-point values have no known range")
        if file.mode.startswith("I;16"):
            image = _gray(file)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return np.asarray(image.convert("RGB"))


def _check_tiles(file: TiffImagePlugin.TiffImageFile) -> None:
    """Raises ValueError for tiles that take much more memory than the image.

    libtiff allocates whole tiles, however little of them lies in the image.
    """
    width, length = (file.tag_v2.get(tag, 1) for tag in (_TAG_TILE_WIDTH, _TAG_TILE_LENGTH))
    if width * length > max(_MAX_TILE, file.width * file.height):
        raise ValueError(f"tiles of {width} x {length} pixels")


def _gray(file: Image.Image) -> Image.Image:
    """Converts 16-bit gray values, which Pillow would clip to 255, or 12-bit ones to 8 bits."""
    tags = file.tag_v2 if isinstance(file, TiffImagePlugin.TiffImageFile) else {}
    highest = 4095 if tags.get(_TAG_BITS) == (12,) else 65535
    values = np.rint(np.asarray(file, np.float32) * (255 / highest)).astype(np.uint8)
    return Image.fromarray(255 - values if tags.get(_TAG_PHOTOMETRIC) == _WHITE_IS_ZERO else values)

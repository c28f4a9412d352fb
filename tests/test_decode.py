"""Oracle: Pillow after the picture is turned upright and converted to RGB."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from gsjax.data.decode import decode_image


def _picture(height=61, width=83) -> Image.Image:
    """A smooth colour picture whose four corners differ: JPEG keeps it well."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([255 * y / height, 255 * x / width, 127 + 100 * np.sin((x + 2 * y) / 15)], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def _encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _grey16() -> bytes:
    values = np.linspace(0, 65535, 61 * 83).astype(np.uint16).reshape(61, 83)
    return _encode(Image.fromarray(values), "PNG")


def _transparent() -> Image.Image:
    image = _picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.arange(61 * 83).reshape(61, 83).astype(np.uint8)))
    return image


def _palette(kind: str, **options) -> bytes:
    return _encode(_picture().quantize(64), kind, **options)


FORMATS = {
    "jpeg": lambda: _encode(_picture(), "JPEG", quality=90),
    "jpeg, no subsampling": lambda: _encode(_picture(), "JPEG", quality=95, subsampling=0),
    "jpeg, progressive": lambda: _encode(_picture(), "JPEG", progressive=True),
    "jpeg, grey": lambda: _encode(_picture().convert("L"), "JPEG"),
    "jpeg, CMYK": lambda: _encode(_picture().convert("CMYK"), "JPEG"),
    "png": lambda: _encode(_picture(), "PNG"),
    "png, grey": lambda: _encode(_picture().convert("L"), "PNG"),
    "png, 1 bit": lambda: _encode(_picture().convert("1"), "PNG"),
    "png, palette": lambda: _palette("PNG"),
    "png, palette and transparency": lambda: _palette("PNG", transparency=bytes(range(64))),
    "png, RGBA": lambda: _encode(_transparent(), "PNG"),
    "png, grey and alpha": lambda: _encode(_transparent().convert("LA"), "PNG"),
    "webp": lambda: _encode(_picture(), "WEBP"),
    "webp, RGBA": lambda: _encode(_transparent(), "WEBP", lossless=True),
    "bmp": lambda: _encode(_picture(), "BMP"),
    "bmp, grey": lambda: _encode(_picture().convert("L"), "BMP"),
    "bmp, palette": lambda: _palette("BMP"),
    **{
        f"jpeg, orientation {turn}": lambda turn=turn: _encode(
            _picture(), "JPEG", exif=_turned(turn)
        )
        for turn in range(1, 9)
    },
    "png, orientation": lambda: _encode(_picture(), "PNG", exif=_turned(6)),
    "webp, orientation": lambda: _encode(_picture(), "WEBP", exif=_turned(3)),
    "png, palette, transparency, orientation": lambda: _palette(
        "PNG", transparency=bytes(range(64)), exif=_turned(6)
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_equals_pillow(name):
    encoded = FORMATS[name]()
    image = decode_image(tf.constant(encoded)).numpy()
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    if upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")
    expected = np.asarray(upright.convert("RGB"))
    assert image.shape == expected.shape and image.dtype == np.uint8
    # The two carry different builds of libjpeg; everything else is lossless.
    tolerance = 2 if name.startswith("jpeg") else 0
    np.testing.assert_allclose(image.astype(int), expected.astype(int), atol=tolerance)


def test_orientation_turns_the_picture():
    plain = decode_image(tf.constant(_encode(_picture(), "JPEG"))).numpy()
    turned = decode_image(tf.constant(_encode(_picture(), "JPEG", exif=_turned(6)))).numpy()
    np.testing.assert_array_equal(turned, np.rot90(plain, -1))


def test_sixteen_bits_are_divided_by_257():
    encoded = _grey16()
    values = np.asarray(Image.open(io.BytesIO(encoded))).astype(float)
    image = decode_image(tf.constant(encoded)).numpy()
    np.testing.assert_array_equal(image, np.rint(values / 257)[..., None].repeat(3, -1))


def test_the_content_decides_not_the_name(tmp_path):
    path = tmp_path / "picture.JPEG"
    path.write_bytes(_encode(_picture(), "PNG"))
    image = decode_image(tf.io.read_file(str(path))).numpy()
    np.testing.assert_array_equal(image, np.asarray(_picture()))


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "bmp"])
def test_a_damaged_picture_raises(name):
    encoded = FORMATS[name]()
    with pytest.raises(tf.errors.OpError):
        decode_image(tf.constant(encoded[: len(encoded) // 2]))


@pytest.mark.parametrize("encoded", [b"", b"no picture at all", b"\xff\xd8\xff"])
def test_other_bytes_raise(encoded):
    with pytest.raises(tf.errors.OpError):
        decode_image(tf.constant(encoded))


def test_an_image_bomb_is_refused():
    bomb = bytearray(_encode(Image.new("L", (8, 8)), "BMP"))
    bomb[18:22] = bomb[22:26] = (20_000).to_bytes(4, "little")
    with pytest.raises(tf.errors.OpError, match="DecompressionBomb"):
        decode_image(tf.constant(bytes(bomb)))

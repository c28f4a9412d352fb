"""Oracle: Pillow after the picture is turned upright and converted to RGB."""

import io
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps, PngImagePlugin

from gsjax.data.decode import MAX_PIXELS, MAX_SIDE, decode_image


def picture(height=61, width=83) -> Image.Image:
    """A smooth color picture whose four corners differ: JPEG keeps it well."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([255 * y / height, 255 * x / width, 127 + 100 * np.sin((x + 2 * y) / 15)], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """A PNG file of compressed rows, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _deep(color: int, channels: int) -> tuple[bytes, np.ndarray]:
    """A PNG file of 16 bits and its values."""
    values = np.random.default_rng(color).integers(0, 65536, (20, 30, channels), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return _png(30, 20, 16, color, zlib.compress(rows)), values


def _four_channels(kind: str) -> bytes:
    """A JPEG file of four channels: Adobe's inverted CMYK or YCCK, or one without its marker."""
    encoded = encode(picture().convert("CMYK"), "JPEG", quality=90)
    name = encoded.index(b"Adobe")
    if kind == "YCCK":
        return encoded[: name + 11] + b"\2" + encoded[name + 12 :]
    length = int.from_bytes(encoded[name - 2 : name], "big")
    return encoded[: name - 4] + encoded[name - 2 + length :]


def transparent() -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.arange(61 * 83).reshape(61, 83).astype(np.uint8)))
    return image


def palette(kind: str, **options) -> bytes:
    return encode(picture().quantize(64), kind, **options)


def noise() -> Image.Image:
    """A picture whose PNG file is larger than 64 kB."""
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    return Image.fromarray(pixels)


def _after_a_profile(jpeg: bytes) -> bytes:
    """The JPEG file with two segments of 35 kB before all others."""
    data = b"ICC_PROFILE\0\1\2" + bytes(35_000)
    return jpeg[:2] + 2 * (b"\xff\xe2" + struct.pack(">H", len(data) + 2) + data) + jpeg[2:]


def gray16(kind: str, **options) -> bytes:
    values = np.linspace(0, 65535, 61 * 83).astype(np.uint16).reshape(61, 83)
    return encode(Image.fromarray(values), kind, **options)


RAW_PROFILE = f"\nexif\n{len(turned(6).tobytes())}\n{turned(6).tobytes().hex()}"
XMP = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'


def _with_text(name: str, text: str) -> bytes:
    """A PNG file with a compressed text."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(name, text, zip=True)
    return encode(picture(), "PNG", pnginfo=info)


FORMATS = {
    "jpeg": lambda: encode(picture(), "JPEG", quality=90),
    "jpeg, no subsampling": lambda: encode(picture(), "JPEG", quality=95, subsampling=0),
    "jpeg, progressive": lambda: encode(picture(), "JPEG", progressive=True),
    "jpeg, gray": lambda: encode(picture().convert("L"), "JPEG"),
    "jpeg, RGB": lambda: encode(picture(), "JPEG", keep_rgb=True),
    "jpeg, CMYK": lambda: encode(picture().convert("CMYK"), "JPEG"),
    "jpeg, YCCK": lambda: _four_channels("YCCK"),
    "jpeg, CMYK without Adobe's marker": lambda: _four_channels("bare"),
    "png": lambda: encode(picture(), "PNG"),
    "png, gray": lambda: encode(picture().convert("L"), "PNG"),
    "png, 1 bit": lambda: encode(picture().convert("1"), "PNG"),
    "png, palette": lambda: palette("PNG"),
    "png, palette and transparency": lambda: palette("PNG", transparency=bytes(range(64))),
    "png, RGBA": lambda: encode(transparent(), "PNG"),
    "png, gray and alpha": lambda: encode(transparent().convert("LA"), "PNG"),
    "png, 16-bit color": lambda: _deep(2, 3)[0],
    "png, 16-bit RGBA": lambda: _deep(6, 4)[0],
    "webp": lambda: encode(picture(), "WEBP"),
    "webp, RGBA": lambda: encode(transparent(), "WEBP", lossless=True),
    "bmp": lambda: encode(picture(), "BMP"),
    "bmp, gray": lambda: encode(picture().convert("L"), "BMP"),
    "bmp, palette": lambda: palette("BMP"),
    **{
        f"jpeg, orientation {turn}": lambda turn=turn: encode(picture(), "JPEG", exif=turned(turn))
        for turn in range(1, 9)
    },
    "png, orientation": lambda: encode(picture(), "PNG", exif=turned(6)),
    "webp, orientation": lambda: encode(picture(), "WEBP", exif=turned(3)),
    "jpeg, orientation after 70 kB of color profile": lambda: _after_a_profile(
        encode(picture(), "JPEG", exif=turned(6))
    ),
    "png, orientation after the pixels": lambda: (
        encode(noise(), "PNG")[:-12]
        + _chunk(b"eXIf", turned(6).tobytes()[6:])
        + _chunk(b"IEND", b"")
    ),
    "png, orientation as text": lambda: _with_text("Raw profile type exif", RAW_PROFILE),
    "png, orientation as XMP": lambda: _with_text("XML:com.adobe.xmp", XMP),
    "png, palette, transparency, orientation": lambda: palette(
        "PNG", transparency=bytes(range(64)), exif=turned(6)
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
    plain = decode_image(tf.constant(encode(picture(), "JPEG"))).numpy()
    image = decode_image(tf.constant(encode(picture(), "JPEG", exif=turned(6)))).numpy()
    np.testing.assert_array_equal(image, np.rot90(plain, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_divided_by_257(kind):
    encoded = gray16(kind)
    values = np.asarray(Image.open(io.BytesIO(encoded))).astype(float)
    image = decode_image(tf.constant(encoded)).numpy()
    np.testing.assert_array_equal(image, np.rint(values / 257)[..., None].repeat(3, -1))


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bits_of_color_are_within_one(color, channels):
    """Pillow drops the low byte of colors: at most 1 away from the division by 257."""
    encoded, values = _deep(color, channels)
    colors = values[..., :3] if channels > 2 else values[..., :1].repeat(3, -1)
    image = decode_image(tf.constant(encoded)).numpy().astype(float)
    np.testing.assert_allclose(image, colors / 257, atol=1)


def test_the_content_decides_not_the_name(tmp_path):
    path = tmp_path / "picture.JPEG"
    path.write_bytes(encode(picture(), "PNG"))
    image = decode_image(tf.io.read_file(str(path))).numpy()
    np.testing.assert_array_equal(image, np.asarray(picture()))


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "bmp"])
def test_a_damaged_picture_raises(name):
    encoded = FORMATS[name]()
    with pytest.raises(tf.errors.OpError):
        decode_image(tf.constant(encoded[: len(encoded) // 2]))


@pytest.mark.parametrize("encoded", [b"", b"no picture at all", b"\xff\xd8\xff"])
def test_other_bytes_raise(encoded):
    with pytest.raises(tf.errors.OpError):
        decode_image(tf.constant(encoded))


def test_other_formats_are_refused():
    """Pillow's others are not tried: EPS for one runs a program."""
    with pytest.raises(tf.errors.OpError):
        decode_image(tf.constant(encode(picture(), "GIF")))


def _png_bomb(side: int) -> bytes:
    compressor = zlib.compressobj(1)
    row = bytes(1 + side)
    rows = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    return _png(side, side, 8, 0, rows)


def _webp_bomb(side: int) -> bytes:
    """Of a lossless picture of one color a pixel takes no bits: only the header knows the size."""
    bomb = bytearray(encode(Image.new("RGB", (1, 1), (9, 99, 200)), "WEBP", lossless=True))
    start = bomb.index(b"VP8L") + 9
    bits = int.from_bytes(bomb[start : start + 4], "little") & ~((1 << 28) - 1)
    bomb[start : start + 4] = (bits | (side - 1) | (side - 1) << 14).to_bytes(4, "little")
    return bytes(bomb)


def _bmp_bomb(side: int) -> bytes:
    bomb = bytearray(encode(Image.new("L", (8, 8)), "BMP"))
    bomb[18:22] = bomb[22:26] = side.to_bytes(4, "little")
    return bytes(bomb)


BOMBS = {
    "png": lambda: _png_bomb(20_000),
    "png, orientation": lambda: _png_bomb(10_000) + b"eXIf",
    "jpeg": lambda: encode(Image.new("L", (12_000, 12_000)), "JPEG"),
    "webp": lambda: _webp_bomb(12_000),
    "bmp": lambda: _bmp_bomb(20_000),
}

REFUSE = """
import pathlib, sys
import numpy as np
from gsjax.config import defaults
from gsjax.data import input_pipeline, sources, transforms
from gsjax.errors import UserError

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

def use(folder, num_bombs):
    config.data.source, config.data.data_dir = "folder", folder
    source = sources.open_source(config.data, "")
    batches = list(input_pipeline.train_batches(source, config, 0, 2))
    taken = np.concatenate([batch["index"] for batch in batches])
    bombs = [i for i in range(10) if "bomb" in source.image_name(i).split("/")[-1]]
    assert len(bombs) == num_bombs and len(taken) == 20 and not np.isin(bombs, taken).any()
    (batch,) = input_pipeline.test_batches(source, transforms.central(16), 10)
    assert (batch["index"] >= 0).sum() == 10 - num_bombs
    for i in bombs:
        try:
            input_pipeline.load_images(source, [i])
        except UserError:
            continue
        raise AssertionError("the bomb was decoded")

config = defaults.get_config()
config.batch_size, config.data.max_damaged = 10, 0.5
use(sys.argv[1], 0)
before = peak()
use(sys.argv[2], 5)
print(peak() - before)
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="no /proc")
def test_image_bombs_are_refused_from_their_headers(tmp_path):
    """In training, features and example pictures, without the memory that they would take."""
    for folder, count in (("sound", 10), ("bombs", 5)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            picture().save(tmp_path / folder / f"{i}.png")
    for i, bomb in enumerate(BOMBS.values()):
        (tmp_path / f"bombs/bomb{i}.png").write_bytes(bomb())
    process = subprocess.run(
        [sys.executable, "-c", REFUSE, str(tmp_path / "sound"), str(tmp_path / "bombs")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": ""},
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr.count(".png cannot be decoded: ") == 5
    assert "DecompressionBombWarning" not in process.stderr
    assert float(process.stdout) < 200


def test_the_limit_itself_is_no_bomb():
    """A picture of just under the limit is decoded: its header alone decides."""
    side = int(MAX_PIXELS**0.5)
    assert decode_image(tf.constant(_png_bomb(side))).shape == (side, side, 3)
    with pytest.raises(tf.errors.OpError, match="pixels"):
        decode_image(tf.constant(_png_bomb(side + 1)))


@pytest.mark.parametrize("orientation", [b"", b"eXIf"])
def test_a_side_has_a_limit_too(orientation):
    """Of TensorFlow's decoder and, after a possible orientation, of Pillow's."""
    for side in (MAX_SIDE, MAX_SIDE + 1):
        encoded = _png(side, 1, 8, 0, zlib.compress(bytes(1 + side))) + orientation
        if side == MAX_SIDE:
            assert decode_image(tf.constant(encoded)).shape == (1, side, 3)
        else:
            with pytest.raises(tf.errors.OpError, match="per side"):
                decode_image(tf.constant(encoded))

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

from gsjax.data.decode import MAX_PIXELS, decode_image


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


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file of compressed rows, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _deep(colour: int, channels: int) -> tuple[bytes, np.ndarray]:
    """A PNG file of 16 bits and its values."""
    values = np.random.default_rng(colour).integers(0, 65536, (20, 30, channels), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return _png(30, 20, 16, colour, zlib.compress(rows)), values


def _four_channels(kind: str) -> bytes:
    """A JPEG file of four channels: Adobe's inverted CMYK or YCCK, or one without its marker."""
    encoded = _encode(_picture().convert("CMYK"), "JPEG", quality=90)
    name = encoded.index(b"Adobe")
    if kind == "YCCK":
        return encoded[: name + 11] + b"\2" + encoded[name + 12 :]
    length = int.from_bytes(encoded[name - 2 : name], "big")
    return encoded[: name - 4] + encoded[name - 2 + length :]


def _transparent() -> Image.Image:
    image = _picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.arange(61 * 83).reshape(61, 83).astype(np.uint8)))
    return image


def _palette(kind: str, **options) -> bytes:
    return _encode(_picture().quantize(64), kind, **options)


def _noise() -> Image.Image:
    """A picture whose PNG file is larger than 64 kB."""
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    return Image.fromarray(pixels)


def _after_a_profile(jpeg: bytes) -> bytes:
    """The JPEG file with two segments of 35 kB before all others."""
    data = b"ICC_PROFILE\0\1\2" + bytes(35_000)
    return jpeg[:2] + 2 * (b"\xff\xe2" + struct.pack(">H", len(data) + 2) + data) + jpeg[2:]


def _gray16(kind: str, **options) -> bytes:
    values = np.linspace(0, 65535, 61 * 83).astype(np.uint16).reshape(61, 83)
    return _encode(Image.fromarray(values), kind, **options)


def _pages() -> bytes:
    return _encode(_picture(), "TIFF", save_all=True, append_images=[_noise(), _noise()])


def _tiff(width: int, height: int, pixels: bytes, tags: dict[int, tuple], order="<") -> bytes:
    """An uncompressed TIFF file, for what Pillow does not write; `tags` of SHORT values."""
    tags = {256: (width,), 257: (height,), 259: (1,), **tags}
    out_of_line = {tag: values for tag, values in tags.items() if len(values) > 2}
    place = 8 + 2 + 12 * (len(tags) + 1) + 4
    start = place + sum(2 * len(values) for values in out_of_line.values())
    entries, data = [], b""
    for tag, values in sorted({**tags, 273: (start,)}.items()):
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            data, packed = data + packed, struct.pack(f"{order}I", place + len(data))
        entries.append(struct.pack(f"{order}HHI", tag, 3, len(values)) + packed.ljust(4, b"\0"))
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    return magic + directory + data + pixels


def _tiff_deep(order: str) -> bytes:
    """16-bit RGB."""
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), np.uint16)
    tags = {258: (16, 16, 16), 262: (2,), 277: (3,)}
    return _tiff(30, 20, values.astype(f"{order}u2").tobytes(), tags, order)


def _tiff_tiled() -> bytes:
    """Four tiles of 16 x 16 gray pixels; the picture is smaller."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    tiles = pixels.reshape(2, 16, 2, 16).swapaxes(1, 2).tobytes()
    encoded = _tiff(31, 23, tiles, {258: (8,), 262: (1,), 322: (16,), 323: (16,)})
    # One strip's offset becomes four tiles', which stand at the end.
    start, even = len(encoded) - len(tiles), encoded + bytes(len(encoded) % 2)
    offsets = struct.pack("<4H", *range(start, start + 1024, 256))
    entry = even.index(struct.pack("<HHI", 273, 3, 1))
    tagged = struct.pack("<HHII", 324, 3, 4, len(even))
    return even[:entry] + tagged + even[entry + 12 :] + offsets


RAW_PROFILE = f"\nexif\n{len(_turned(6).tobytes())}\n{_turned(6).tobytes().hex()}"
XMP = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'


def _with_text(name: str, text: str) -> bytes:
    """A PNG file with a compressed text."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(name, text, zip=True)
    return _encode(_picture(), "PNG", pnginfo=info)


FORMATS = {
    "jpeg": lambda: _encode(_picture(), "JPEG", quality=90),
    "jpeg, no subsampling": lambda: _encode(_picture(), "JPEG", quality=95, subsampling=0),
    "jpeg, progressive": lambda: _encode(_picture(), "JPEG", progressive=True),
    "jpeg, grey": lambda: _encode(_picture().convert("L"), "JPEG"),
    "jpeg, RGB": lambda: _encode(_picture(), "JPEG", keep_rgb=True),
    "jpeg, CMYK": lambda: _encode(_picture().convert("CMYK"), "JPEG"),
    "jpeg, YCCK": lambda: _four_channels("YCCK"),
    "jpeg, CMYK without Adobe's marker": lambda: _four_channels("bare"),
    "png": lambda: _encode(_picture(), "PNG"),
    "png, grey": lambda: _encode(_picture().convert("L"), "PNG"),
    "png, 1 bit": lambda: _encode(_picture().convert("1"), "PNG"),
    "png, palette": lambda: _palette("PNG"),
    "png, palette and transparency": lambda: _palette("PNG", transparency=bytes(range(64))),
    "png, RGBA": lambda: _encode(_transparent(), "PNG"),
    "png, grey and alpha": lambda: _encode(_transparent().convert("LA"), "PNG"),
    "png, 16-bit colour": lambda: _deep(2, 3)[0],
    "png, 16-bit RGBA": lambda: _deep(6, 4)[0],
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
    "jpeg, orientation after 70 kB of colour profile": lambda: _after_a_profile(
        _encode(_picture(), "JPEG", exif=_turned(6))
    ),
    "png, orientation after the pixels": lambda: (
        _encode(_noise(), "PNG")[:-12]
        + _chunk(b"eXIf", _turned(6).tobytes()[6:])
        + _chunk(b"IEND", b"")
    ),
    "png, orientation as text": lambda: _with_text("Raw profile type exif", RAW_PROFILE),
    "png, orientation as XMP": lambda: _with_text("XML:com.adobe.xmp", XMP),
    **{
        f"tiff, {kind}": lambda kind=kind: _encode(_picture(), "TIFF", compression=kind)
        for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    },
    **{
        f"tiff, {mode}": lambda mode=mode: _encode(
            _transparent().convert(mode), "TIFF", compression="tiff_lzw"
        )
        for mode in ("1", "L", "LA", "RGBA", "CMYK")
    },
    "tiff, palette": lambda: _palette("TIFF"),
    "tiff, fax": lambda: _encode(_picture().convert("1"), "TIFF", compression="group4"),
    "tiff, BigTIFF": lambda: _encode(_picture(), "TIFF", big_tiff=True),
    "tiff, several pages": _pages,
    "tiff, tiles": _tiff_tiled,
    "tiff, 16-bit colour": lambda: _tiff_deep("<"),
    "tiff, 16-bit colour, big-endian": lambda: _tiff_deep(">"),
    **{
        f"tiff, {kind}, orientation {turn}": lambda kind=kind, turn=turn: _encode(
            _picture(), "TIFF", compression=kind, exif=_turned(turn)
        )
        for turn in range(1, 9)
        for kind in ("raw", "tiff_lzw")
    },
    "tiff, orientation as XMP": lambda: _encode(_picture(), "TIFF", tiffinfo={700: XMP.encode()}),
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
    tolerance = 2 if name.startswith("jpeg") else 0  # Pillow alone decodes that in TIFF
    np.testing.assert_allclose(image.astype(int), expected.astype(int), atol=tolerance)


def test_orientation_turns_the_picture():
    plain = decode_image(tf.constant(_encode(_picture(), "JPEG"))).numpy()
    turned = decode_image(tf.constant(_encode(_picture(), "JPEG", exif=_turned(6)))).numpy()
    np.testing.assert_array_equal(turned, np.rot90(plain, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_divided_by_257(kind):
    encoded = _gray16(kind)
    values = np.asarray(Image.open(io.BytesIO(encoded))).astype(float)
    image = decode_image(tf.constant(encoded)).numpy()
    np.testing.assert_array_equal(image, np.rint(values / 257)[..., None].repeat(3, -1))


def _gray_tiff(order="<", white_is_zero=False) -> tuple[bytes, np.ndarray]:
    values = np.arange(30 * 20, dtype=np.uint16).reshape(20, 30) * 109
    tags = {258: (16,), 262: (int(not white_is_zero),)}
    return _tiff(30, 20, values.astype(f"{order}u2").tobytes(), tags, order), values


@pytest.mark.parametrize("order", "<>")
def test_sixteen_bits_of_gray_in_tiff(order):
    encoded, values = _gray_tiff(order)
    image = decode_image(tf.constant(encoded)).numpy()
    np.testing.assert_array_equal(image[..., 0], np.rint(values / 257))


def test_gray_whose_zero_is_white():
    """Pillow inverts 8 bits only; TIFF 6.0 (p. 37) says so for any number."""
    encoded, values = _gray_tiff(white_is_zero=True)
    image = decode_image(tf.constant(encoded)).numpy()
    np.testing.assert_array_equal(image[..., 0], 255 - np.rint(values / 257))


def test_twelve_bits_of_gray():
    values = np.arange(20 * 30).reshape(20, 30) * 6
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] << 4 | pairs[:, 1] >> 8) & 255, pairs[:, 1]])
    encoded = _tiff(30, 20, (packed & 255).T.astype(np.uint8).tobytes(), {258: (12,), 262: (1,)})
    image = decode_image(tf.constant(encoded)).numpy()
    np.testing.assert_array_equal(image[..., 0], np.rint(values * 255 / 4095))


@pytest.mark.parametrize("values", [np.int32, np.float32, np.int16])
def test_values_without_a_range_are_refused(values):
    tags = {258: (8 * values().itemsize,), 262: (1,), 339: (3 if values is np.float32 else 2,)}
    encoded = _tiff(30, 20, np.ones((20, 30), values).tobytes(), tags)
    assert Image.open(io.BytesIO(encoded)).mode in ("I", "F")
    with pytest.raises(tf.errors.OpError, match="no known range"):
        decode_image(tf.constant(encoded))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bits_of_colour_are_within_one(colour, channels):
    """Pillow drops the low byte of colours: at most 1 away from the division by 257."""
    encoded, values = _deep(colour, channels)
    colours = values[..., :3] if channels > 2 else values[..., :1].repeat(3, -1)
    image = decode_image(tf.constant(encoded)).numpy().astype(float)
    np.testing.assert_allclose(image, colours / 257, atol=1)


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


def test_other_formats_are_refused():
    """Pillow's others are not tried: EPS for one runs a program."""
    with pytest.raises(tf.errors.OpError):
        decode_image(tf.constant(_encode(_picture(), "GIF")))


def _png_bomb(side: int) -> bytes:
    compressor = zlib.compressobj(1)
    row = bytes(1 + side)
    rows = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    return _png(side, side, 8, 0, rows)


def _webp_bomb(side: int) -> bytes:
    """Of a lossless picture of one colour a pixel takes no bits: only the header knows the size."""
    bomb = bytearray(_encode(Image.new("RGB", (1, 1), (9, 99, 200)), "WEBP", lossless=True))
    start = bomb.index(b"VP8L") + 9
    bits = int.from_bytes(bomb[start : start + 4], "little") & ~((1 << 28) - 1)
    bomb[start : start + 4] = (bits | (side - 1) | (side - 1) << 14).to_bytes(4, "little")
    return bytes(bomb)


def _bmp_bomb(side: int) -> bytes:
    bomb = bytearray(_encode(Image.new("L", (8, 8)), "BMP"))
    bomb[18:22] = bomb[22:26] = side.to_bytes(4, "little")
    return bytes(bomb)


BOMBS = {
    "png": lambda: _png_bomb(20_000),
    "png, orientation": lambda: _png_bomb(10_000) + b"eXIf",
    "jpeg": lambda: _encode(Image.new("L", (12_000, 12_000)), "JPEG"),
    "webp": lambda: _webp_bomb(12_000),
    "bmp": lambda: _bmp_bomb(20_000),
}

REFUSE = """
import pathlib, sys
import numpy as np
from gsjax import defaults
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
    bombs = [i for i in range(10) if "bomb" in source.picture_name(i).split("/")[-1]]
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
            _picture().save(tmp_path / folder / f"{i}.png")
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

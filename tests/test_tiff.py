"""TIFF files. Oracle: Pillow, which turns them upright by itself; else the values written."""

import io
import pathlib
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_decode import XMP, encode, noise, palette, picture, transparent, turned
from test_decode_fuzz import forget_peak, memory

from gsjax.data.decode import decode_image


def _pages() -> bytes:
    return encode(picture(), "TIFF", save_all=True, append_images=[noise(), noise()])


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


FORMATS = {
    **{
        f"{kind}": lambda kind=kind: encode(picture(), "TIFF", compression=kind)
        for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    },
    **{
        f"{mode}": lambda mode=mode: encode(
            transparent().convert(mode), "TIFF", compression="tiff_lzw"
        )
        for mode in ("1", "L", "LA", "RGBA", "CMYK")
    },
    "palette": lambda: palette("TIFF"),
    "fax": lambda: encode(picture().convert("1"), "TIFF", compression="group4"),
    "BigTIFF": lambda: encode(picture(), "TIFF", big_tiff=True),
    "several pages": _pages,
    "tiles": _tiff_tiled,
    "16-bit color": lambda: _tiff_deep("<"),
    "16-bit color, big-endian": lambda: _tiff_deep(">"),
    **{
        f"{kind}, orientation {turn}": lambda kind=kind, turn=turn: encode(
            picture(), "TIFF", compression=kind, exif=turned(turn)
        )
        for turn in range(1, 9)
        for kind in ("raw", "tiff_lzw")
    },
    "orientation as XMP": lambda: encode(picture(), "TIFF", tiffinfo={700: XMP.encode()}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_equals_pillow(name):
    encoded = FORMATS[name]()
    image = decode_image(tf.constant(encoded)).numpy()
    with Image.open(io.BytesIO(encoded)) as file:
        file.load()
        np.testing.assert_array_equal(image, np.asarray(file.convert("RGB")))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
def test_a_cut_file_raises(compression):
    encoded = encode(noise(), "TIFF", compression=compression)
    with pytest.raises(tf.errors.OpError):
        decode_image(tf.constant(encoded[: len(encoded) // 2]))


@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="no /proc")
@pytest.mark.parametrize("kind", ["raw", "tiff_lzw", "jpeg"])
@pytest.mark.parametrize("side", [9_000, 20_000])
def test_a_header_that_lies_takes_little_memory(kind, side):
    """At most the 4 bytes of each of 81 million pixels, which miss; none of 400 million pixels."""
    encoded = bytearray(encode(picture(), "TIFF", compression=kind))
    first = int.from_bytes(encoded[4:8], "little")
    for entry in range(first + 2, first + 26, 12):  # width and height
        encoded[entry + 8 : entry + 12] = struct.pack("<I", side)
        encoded[entry + 2 : entry + 4] = struct.pack("<H", 4)
    forget_peak()
    before = memory("VmRSS")
    with pytest.raises(tf.errors.OpError, match="pixels" if side > 9_459 else None):
        decode_image(tf.constant(bytes(encoded)))
    pixels = side**2 if side < 9_459 else 0
    assert memory("VmHWM") - before < 200 + 4 * pixels / 2**20


def test_tiles_much_larger_than_the_picture_are_refused():
    """libtiff would allocate 65,535 x 65,535 pixels."""
    encoded = encode(picture(), "TIFF", compression="tiff_lzw")
    tiles = b"".join(struct.pack("<HHI2H", tag, 3, 1, 65535, 0) for tag in (322, 323))
    first = int.from_bytes(encoded[4:8], "little")
    count = int.from_bytes(encoded[first : first + 2], "little")
    entries = encoded[first + 2 : first + 2 + 12 * count]
    directory = struct.pack("<H", count + 2) + entries + tiles + bytes(4)
    encoded += bytes(len(encoded) % 2)
    encoded = encoded[:4] + struct.pack("<I", len(encoded)) + encoded[8:] + directory
    with pytest.raises(tf.errors.OpError, match="tiles of 65535 x 65535"):
        decode_image(tf.constant(encoded))


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

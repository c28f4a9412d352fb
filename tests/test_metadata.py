"""Broken metadata harm no picture: its pixels are Pillow's pixels of the file without them."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps

from gsjax.data.decode import decode_image

ORIENTATION = ExifTags.Base.Orientation
XMP = '<rdf:Description tiff:Orientation="%s"/>'


def _picture() -> Image.Image:
    y, x = np.mgrid[:23, :31]
    return Image.fromarray(np.stack([9 * y, 8 * x, 4 * (x + y)], -1).astype(np.uint8))


def _encode(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    _picture().save(buffer, kind, **options)
    return buffer.getvalue()


def _exif(*entries: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """EXIF of entries (tag, type, number of values, four bytes)."""
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(
        struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries
    )
    return b"Exif\0\0" + magic + struct.pack(f"{order}I", 8) + directory + bytes(4)


TURNED = (ORIENTATION, 3, 1, b"\6\0\0\0")
FAR = b"\xff\xff\xff\x7f"  # an offset beyond the end

# EXIF, and the orientation that it gives.
EXIF = {
    "nothing": (b"Exif\0\0", 1),
    "no TIFF header": (b"Exif\0\0no EXIF at all", 1),
    "cut in its header": (_exif(TURNED)[:11], 1),
    "cut in its entries": (_exif(TURNED)[:20], 1),
    "cut after the orientation": (_exif(TURNED, (270, 2, 4, b"abc\0"))[:30], 6),
    "a directory beyond the end": (b"Exif\0\0II*\0\xff\xff\xff\x7f", 1),
    "more entries than bytes": (_exif(TURNED).replace(b"\1\0\x12\1", b"\xff\xff\x12\1"), 6),
    "an entry with its values beyond the end before it": (_exif((271, 2, 99, FAR), TURNED), 6),
    "a type that nothing knows before it": (_exif((271, 77, 1, FAR), TURNED), 6),
    "artist as a rational": (_exif(TURNED, (315, 5, 1, b"\x08\0\0\0")), 6),
    "a camera's notes that point to their directory": (
        _exif(TURNED, (0x8769, 4, 1, b"\x08\0\0\0"), (0x8825, 4, 1, b"\x08\0\0\0")),
        6,
    ),
    "zero": (_exif((ORIENTATION, 3, 1, bytes(4))), 1),
    "nine": (_exif((ORIENTATION, 3, 1, b"\x09\0\0\0")), 1),
    "large": (_exif((ORIENTATION, 4, 1, b"\xff\xff\xff\xff")), 1),
    "negative": (_exif((ORIENTATION, 9, 1, b"\xff\xff\xff\xff")), 1),
    "text": (_exif((ORIENTATION, 2, 2, b"6\0\0\0")), 1),
    "bytes": (_exif((ORIENTATION, 1, 1, b"\6\0\0\0")), 1),
    "a long number": (_exif((ORIENTATION, 4, 1, b"\6\0\0\0")), 6),
    "several": (_exif((ORIENTATION, 3, 2, b"\6\0\3\0")), 6),
    "none of its type": (_exif((ORIENTATION, 3, 0, b"\6\0\0\0")), 1),
    "a fraction beyond the end": (_exif((ORIENTATION, 5, 1, FAR)), 1),
    "not a number": (_exif((ORIENTATION, 11, 1, struct.pack("<f", np.nan))), 1),
    "a half": (_exif((ORIENTATION, 11, 1, struct.pack("<f", 6.5))), 1),
    "big-endian": (_exif((ORIENTATION, 3, 1, b"\0\6\0\0"), order=">"), 6),
    "its name twice": (b"Exif\0\0" + _exif(TURNED), 6),
}


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _jpeg(*segments: bytes) -> bytes:
    """A JPEG file with further segments after its first ones."""
    plain = _encode("JPEG", quality=90)
    return plain[:20] + b"".join(segments) + plain[20:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(*chunks: bytes, after: bytes = b"") -> bytes:
    """A PNG file with further chunks before its pixels and after them."""
    plain = _encode("PNG")
    return plain[:33] + b"".join(chunks) + plain[33:-12] + after + plain[-12:]


def _webp(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP file with the chunks, and the marks of a profile, EXIF and XMP."""
    pixels = _encode("WEBP", lossless=True)[12:]
    extended = struct.pack("<4sI4B", b"VP8X", 10, 0x2C, 0, 0, 0) + bytes([30, 0, 0, 22, 0, 0])
    body = b"WEBP" + extended + pixels + b"".join(
        struct.pack("<4sI", kind, len(data)) + data + bytes(len(data) % 2)
        for kind, data in chunks
    )  # fmt: skip
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _assert_pixels(encoded: bytes, orientation: int, kind: str) -> None:
    plain = Image.open(io.BytesIO(_encode(kind, **{"JPEG": {"quality": 90}}.get(kind, {}))))
    plain.getexif()[ORIENTATION] = orientation
    expected = np.asarray(ImageOps.exif_transpose(plain).convert("RGB")).astype(int)
    image = decode_image(tf.constant(encoded)).numpy()
    assert image.shape == expected.shape
    np.testing.assert_allclose(image, expected, atol=2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("name", EXIF)
def test_broken_exif(name):
    exif, orientation = EXIF[name]
    _assert_pixels(_jpeg(_segment(0xE1, exif)), orientation, "JPEG")
    _assert_pixels(_png(_chunk(b"eXIf", exif[6:])), orientation, "PNG")
    _assert_pixels(_png(after=_chunk(b"eXIf", exif[6:])), orientation, "PNG")


@pytest.mark.parametrize("name", EXIF)
def test_broken_exif_in_webp(name):
    encoded = _webp((b"EXIF", EXIF[name][0]))
    expected = np.asarray(_picture())
    image = decode_image(tf.constant(encoded)).numpy()
    np.testing.assert_array_equal(image, np.rot90(expected, -1) if EXIF[name][1] == 6 else expected)


def test_an_unusual_tag_in_a_turned_photograph():
    """Pillow turns it, but then cannot write the other tags."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x013B] = 6, "artist"
    encoded = bytearray(_encode("JPEG", quality=90, exif=exif))
    entry = encoded.index(b"\x01\x3b\x00\x02")
    encoded[entry + 3 : entry + 8] = b"\x05\0\0\0\1"  # a fraction of what follows
    with pytest.raises(Exception, match="unsupported|argument|attribute|encode|required"):
        ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    _assert_pixels(bytes(encoded), 6, "JPEG")


def test_a_fraction_turns_a_picture_as_in_pillow():
    exif = _exif((ORIENTATION, 5, 1, struct.pack("<I", 26))) + struct.pack("<II", 12, 2)
    encoded = _jpeg(_segment(0xE1, exif))
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).size == (23, 31)
    _assert_pixels(encoded, 6, "JPEG")


HUGE_TEXT = zlib.compress(bytes(3_000_000))
PNG_CHUNKS = {
    "a profile of no known compression": _chunk(b"iCCP", b"name\0\7" + b"junk"),
    "a profile without an end of its name": _chunk(b"iCCP", b"name"),
    "a profile of 3 MB": _chunk(b"iCCP", b"name\0\0" + HUGE_TEXT),
    "a text of 3 MB": _chunk(b"zTXt", b"key\0\0" + HUGE_TEXT),
    "an international text of 3 MB": _chunk(b"iTXt", b"key\0\1\0\0\0" + HUGE_TEXT),
    "a text of no known compression": _chunk(b"zTXt", b"key\0\7junk"),
    "a text that is not compressed": _chunk(b"zTXt", b"key\0\0junk"),
    "a short gamma": _chunk(b"gAMA", b"1"),
    "short colors": _chunk(b"cHRM", b"1"),
    "a short size": _chunk(b"pHYs", b"1"),
    "no intent": _chunk(b"sRGB", b""),
    "a short transparency": _chunk(b"tRNS", b"1"),
    "a wrong checksum": _chunk(b"tEXt", b"key\0text")[:-1] + b"?",
    "a name that is none": _chunk(b"t\xffXt", b"key\0text"),
    "short frames": _chunk(b"acTL", b"1"),
    "a frame that leaves the picture": _chunk(b"fcTL", struct.pack(">5I6x", 0, 99, 99, 9, 9)),
    "XMP that is not UTF-8": _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe<x/>"),
    "a profile of no digits": _chunk(b"tEXt", b"Raw profile type exif\0\nexif\n9\nxyz"),
}  # fmt: skip


@pytest.mark.parametrize("name", PNG_CHUNKS)
def test_broken_chunks_of_png(name):
    broken = PNG_CHUNKS[name]
    _assert_pixels(_png(broken), 1, "PNG")
    _assert_pixels(_png(after=broken), 1, "PNG")
    _assert_pixels(_png(broken, _chunk(b"eXIf", _exif(TURNED)[6:])), 6, "PNG")


JPEG_SEGMENTS = {
    "a short JFIF": _segment(0xE0, b"JFIF\0"),
    "a short Adobe": _segment(0xEE, b"Adobe"),
    "a short Photoshop": _segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0"),
    "a profile of no pieces": _segment(0xE2, b"ICC_PROFILE\0"),
    "a piece of a profile": _segment(0xE2, b"ICC_PROFILE\0\7\3junk"),
    "pictures that are none": _segment(0xE2, b"MPF\0II*\0\x08\0\0\0junk"),
    "an endless list of pictures": _segment(0xE2, b"MPF\0" + _exif((0xB001, 4, 1, FAR))[6:]),
    "a comment that is not text": _segment(0xFE, b"\xff\xfe\0"),
    "XMP that is not UTF-8": _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"),
    "XMP without an orientation": _segment(
        0xE1, b"http://ns.adobe.com/xap/1.0/\0" + (XMP % "x").encode()
    ),
    "XMP with an orientation of 9": _segment(
        0xE1, b"http://ns.adobe.com/xap/1.0/\0" + (XMP % 9).encode()
    ),
    "no length": b"\xff\xe5\0\0",
    "a length that is too small": b"\xff\xe5\0\4morethanthat",
}


@pytest.mark.parametrize("name", JPEG_SEGMENTS)
def test_broken_segments_of_jpeg(name):
    broken = JPEG_SEGMENTS[name]
    _assert_pixels(_jpeg(broken), 1, "JPEG")
    _assert_pixels(_jpeg(broken, _segment(0xE1, _exif(TURNED))), 6, "JPEG")


def test_xmp_stands_in_for_broken_exif():
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + (XMP % 6).encode()
    broken = EXIF["no TIFF header"][0]
    _assert_pixels(_jpeg(_segment(0xE1, broken), _segment(0xE1, xmp)), 6, "JPEG")


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("entry", [
    (700, 3, 1, b"\1\0\0\0"), (700, 7, 99, FAR), (0x8769, 4, 1, FAR), (0x8769, 2, 1, FAR),
    (34675, 7, 9, FAR), (282, 2, 1, b"x\0\0\0"), (270, 2, 99, FAR), (330, 4, 9, FAR),
])  # fmt: skip
def test_broken_tags_of_tiff(compression, entry):
    """XMP of numbers, directories beyond the end, a resolution of letters, and the like."""
    encoded = bytearray(_encode("TIFF", compression=compression, tiffinfo={305: "x", 274: 6}))
    place = encoded.index(struct.pack("<H", 305), 8)
    tag, *rest = entry
    encoded[place : place + 12] = struct.pack("<HHI", tag, *rest[:2]) + rest[2]
    _assert_pixels(bytes(encoded), 6, "TIFF")

"""Mutated pictures: the decoder survives, takes little memory, and gives up no sound pixels.

Oracle: Pillow on the same bytes after the metadata are cut out here, independently of the decoder.
"""

import functools
import io
import pathlib
import struct
import warnings
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from gsjax.data.decode import MAX_PIXELS, MAX_SIDE, decode_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MEMORY = 200  # MB beyond the picture
METADATA = (274, 282, 283, 296, 305, 306, 315, 316, 700)  # tags of a TIFF file
XMP = b'<x:xmpmeta tiff:Orientation="8" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/>'


def _picture() -> Image.Image:
    y, x = np.mgrid[:23, :31]
    rgb = np.stack([255 * y / 23, 255 * x / 31, 127 + 100 * np.sin((x + 2 * y) / 5)], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F], exif[0x013B], exif[0x011A] = "maker", "artist", 72.0
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    return exif


def _encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "text", zip=True)
    info.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    info.add_text("Comment", "plain")
    return _encode(_picture(), "PNG", pnginfo=info, exif=_exif(), icc_profile=bytes(99))


@functools.cache
def _seeds() -> dict[str, bytes]:
    image, extra = _picture(), {"exif": _exif(), "icc_profile": bytes(99)}
    deep = Image.fromarray(np.arange(23 * 31, dtype=np.uint16).reshape(23, 31) * 90)
    tiff = {f"tiff {kind}": _encode(image, "TIFF", compression=kind, exif=_exif())
            for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")}  # fmt: skip
    return {
        "jpeg": _encode(image, "JPEG", comment=b"note", xmp=XMP, **extra),
        "jpeg plain": _encode(image, "JPEG", progressive=True),
        "jpeg cmyk": _encode(image.convert("CMYK"), "JPEG", **extra),
        "png": _png(),
        "png plain": _encode(image.quantize(16), "PNG"),
        "png 16": _encode(deep, "PNG", exif=_exif()),
        "webp": _encode(image, "WEBP", xmp=XMP, **extra),
        "webp lossless": _encode(image, "WEBP", lossless=True),
        "bmp": _encode(image, "BMP"),
        "bmp palette": _encode(image.quantize(16), "BMP"),
        "tiff 16": _encode(deep, "TIFF", compression="tiff_lzw"),
        "tiff palette": _encode(image.quantize(16), "TIFF"),
        "tiff cmyk": _encode(image.convert("CMYK"), "TIFF", compression="tiff_adobe_deflate"),
        **tiff,
    }


@st.composite
def pictures(draw) -> bytes:
    """A seed with bytes overwritten, put in, taken out or cut off; mostly near its start."""
    encoded = bytearray(_seeds()[draw(st.sampled_from(sorted(_seeds())))])
    for _ in range(draw(st.integers(0, 4))):
        near = st.integers(0, min(len(encoded), 400) - 1)
        place = draw(near | st.integers(0, len(encoded) - 1))
        numbers = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF])
        order = draw(st.sampled_from("<>"))
        change = draw(st.integers(0, 5))
        if change <= 1:
            encoded[place] = draw(st.integers(0, 255))
        elif change == 2:
            encoded[place : place + 4] = struct.pack(f"{order}I", draw(numbers))
        elif change == 3:
            encoded[place : place + 2] = struct.pack(f"{order}H", draw(numbers) & 0xFFFF)
        elif change == 4:
            encoded[place:place] = draw(st.binary(max_size=20))
        else:
            del encoded[place : place + draw(st.integers(1, 30))]
        encoded = encoded or bytearray(1)
    if draw(st.booleans()) and encoded.startswith(b"\x89PNG"):
        encoded = _with_sound_checksums(encoded)
    return bytes(encoded)


def _with_sound_checksums(png: bytearray) -> bytearray:
    """Else a checksum hides nearly every change from the reader behind it."""
    position = 8
    while position + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, position)
        end = position + 8 + length
        png[end : end + 4] = struct.pack(">I", zlib.crc32(png[position + 4 : end]))[
            : len(png[end:])
        ]
        position = end + 4
    return png


def _stripped(encoded: bytes) -> bytes:
    """The file without metadata."""
    if encoded.startswith(b"\xff\xd8\xff"):
        return _stripped_jpeg(encoded)
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return _stripped_png(encoded)
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return _stripped_webp(encoded)
    if encoded[:4] == b"II*\0":
        return _stripped_tiff(encoded)
    return encoded


def _stripped_jpeg(encoded: bytes) -> bytes:
    parts, position = [encoded[:2]], 2
    while encoded[position : position + 1] == b"\xff" and position + 4 <= len(encoded):
        marker = encoded[position + 1]
        if marker in (0xDA, 0xFF, 0, 1) or 0xD0 <= marker <= 0xD9:
            break
        end = position + 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
        if marker not in (*range(0xE1, 0xEE), 0xEF, 0xFE):  # JFIF and Adobe give the colors
            parts.append(encoded[position:end])
        position = end
    return b"".join(parts) + encoded[position:]


def _stripped_png(encoded: bytes) -> bytes:
    parts, position = [encoded[:8]], 8
    while position + 8 <= len(encoded):
        end = position + 12 + int.from_bytes(encoded[position : position + 4], "big")
        if encoded[position + 4 : position + 8] in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            parts.append(encoded[position:end])
        position = end
    return b"".join(parts)


def _stripped_webp(encoded: bytes) -> bytes:
    parts, position = [], 12
    while position + 8 <= len(encoded):
        kind, length = struct.unpack_from("<4sI", encoded, position)
        end = position + 8 + length + length % 2
        if kind not in (b"EXIF", b"XMP ", b"ICCP"):
            part = encoded[position:end]
            parts.append(
                part[:8] + bytes([part[8] & ~0x2C]) + part[9:] if kind == b"VP8X" else part
            )
        position = end
    return b"RIFF" + struct.pack("<I", 4 + len(b"".join(parts))) + b"WEBP" + b"".join(parts)


def _stripped_tiff(encoded: bytes) -> bytes:
    """Pillow passes over entries of unknown types."""
    first = int.from_bytes(encoded[4:8], "little")
    count = int.from_bytes(encoded[first : first + 2], "little")
    stripped, end = bytearray(encoded), first + 2 + 12 * count
    for entry in range(first + 2, min(end, len(encoded) - 11), 12):
        tag, _, _, value = struct.unpack_from("<HHII", encoded, entry)
        if tag in (273, 320) and first < value < end:
            return encoded  # the directory reaches into the pixels or the palette
        if 269 <= tag <= 272 or tag > 32767 or tag in METADATA:
            stripped[entry + 2 : entry + 4] = b"\xff\xff"
    return bytes(stripped)


def _claimed(encoded: bytes) -> int:
    """The pixels of which a header tells; 0 if they are too many to be decoded."""
    try:
        with Image.open(io.BytesIO(_stripped(encoded)), formats=FORMATS) as file:
            pixels = file.width * file.height
            return pixels if pixels <= MAX_PIXELS else 0
    except Exception:
        return 0


def _pillow(encoded: bytes) -> np.ndarray | None:
    """Pillow's pixels, not turned; None where it has none or `decode_image` promises none."""
    try:
        with Image.open(io.BytesIO(_stripped(encoded)), formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS or max(file.size) > MAX_SIDE:
                return None
            file.load()
            if file.mode in ("I", "F"):
                return None
            if not file.mode.startswith("I;16"):
                return np.asarray(file.convert("RGB"))
            if file.format == "TIFF" and (file.tag_v2[258], file.tag_v2.get(262)) != ((16,), 1):
                return None
            gray = np.rint(np.asarray(file) / 257).astype(np.uint8)
            return np.repeat(gray[..., None], 3, axis=-1)
    except Exception:
        return None


def _orientation(encoded: bytes) -> int | None:
    """As Pillow reads it from the whole file; None where it cannot, or warns of what is broken."""
    try:
        with (
            warnings.catch_warnings(action="error"),
            Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG", "WEBP")) as file,
        ):
            file.load()
            if "exif" in file.info:
                Image.Exif().load(file.info["exif"])  # getexif may hide that it cannot be read
            value = file.getexif().get(0x0112, 1)
            return int(value) if value in range(1, 9) else 1
    except Exception:
        return None


TURNED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1], 8: lambda a: np.rot90(a),
}  # fmt: skip


def memory(field: str) -> float:
    """MB that this process has (VmRSS) or has had since `_forget_peak` (VmHWM)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def forget_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def _decoded(encoded: bytes) -> np.ndarray | None:
    try:
        return decode_image(tf.constant(encoded)).numpy()
    except tf.errors.ResourceExhaustedError:
        raise  # it would end a run
    except tf.errors.OpError:
        return None


def check(encoded: bytes) -> None:
    """Decodes a picture within its memory, to Pillow's pixels where Pillow has some."""
    forget_peak()
    before = memory("VmRSS")
    image = _decoded(encoded)
    peak = memory("VmHWM")
    pixels = _claimed(encoded) if image is None else image.shape[0] * image.shape[1]
    assert peak - before < MEMORY + 20 * pixels / 2**20
    expected = _pillow(encoded)
    if expected is None:
        return
    assert image is not None, "Pillow decodes it"
    orientation = _orientation(encoded)
    turns = TURNED if orientation is None else [orientation]
    choices = [TURNED[turn](expected) for turn in turns]
    # Their builds of libjpeg differ, most where coefficients are broken; the others are lossless.
    tolerance = 8 if encoded.startswith(b"\xff\xd8") else 0
    assert any(
        image.shape == choice.shape and np.abs(image.astype(int) - choice).max() <= tolerance
        for choice in choices
    )


def _fuzz(examples: int):
    """Settings that give the same examples in every run."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


needs_proc = pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="/proc")


@needs_proc
@_fuzz(300)
@given(pictures())
def test_mutated_pictures(encoded):
    check(encoded)


@needs_proc
@pytest.mark.slow
@_fuzz(5000)
@given(pictures())
def test_many_mutated_pictures(encoded):
    check(encoded)


@needs_proc
@pytest.mark.parametrize("name", sorted(_seeds()))
def test_seeds_are_pictures(name):
    assert _pillow(_seeds()[name]) is not None
    check(_seeds()[name])

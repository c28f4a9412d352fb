"""Separates an encoded image from its metadata, of which only the orientation is read.

Decoders read more than they need, and reject sound pixels because of a broken color profile,
comment or camera note. Here, anything unreadable counts as absent.
"""

import re
import struct
import zlib
from collections.abc import Iterator

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")  # as Pillow, byte orders mixed

_UPRIGHT = 1
_ORIENTATION, _XMP = 0x0112, 700  # tags
_NUMBERS = {  # struct formats, by a tag's type
    3: "H", 4: "L", 5: "LL", 6: "b", 8: "h", 9: "l", 10: "ll", 11: "f", 12: "d", 13: "L", 16: "Q",
}  # fmt: skip
_BYTE_TYPES = (1, 2, 7)  # bytes and text
_TIFF_PIXEL_TAGS = {
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284),  # size, layout, compression
    *(292, 293, 317, 320, 322, 323, 324, 325, 332, 334, 338, 339, 347),  # fax, palette, tiles, inks
    *(512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),  # JPEG, YCbCr
    *(0xBC01, 50674),  # what Pillow refuses (JPEG XR), LERC
}
_TIFF_OFFSET_TAGS = (273, 324)  # of these, the offsets of strips and tiles
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_EXIF, _XAP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_BARE = {0x01, *range(0xD0, 0xDA), 0xC8, *range(0xF0, 0xFE)}  # JPEG markers without a segment
_SCAN = 0xDA
_METADATA = {*range(0xE0, 0xF0), 0xFE}
_MAX_TEXT = 2**20  # bytes of a decompressed text, as in Pillow


def split(encoded: bytes) -> tuple[bytes, int]:
    """Separates an image from its metadata.

    Keeps what the pixels depend on: JPEG's JFIF and Adobe segments, PNG's critical chunks, and the
    tags that describe the layout of a TIFF file's first page.

    Args:
      encoded: the bytes of an image; formats other than JPEG, PNG, WebP, TIFF stay unchanged.

    Returns:
      The file without metadata, and its orientation: 1 (upright) to 8, as in EXIF; 1 if there is
      none or it is unreadable. Where it may be, and what takes precedence, is as in Pillow's
      `ImageOps.exif_transpose`.
    """
    if encoded.startswith(JPEG):
        return _split_jpeg(encoded)
    if encoded.startswith(PNG):
        return _split_png(encoded)
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return _split_webp(encoded)
    if encoded.startswith(TIFF):
        return _split_tiff(encoded)
    return encoded, _UPRIGHT


def _split_jpeg(encoded: bytes) -> tuple[bytes, int]:
    kept, exif, xmp = [encoded[:2]], b"", b""
    position = 2
    while found := _MARKER.search(encoded, position):  # skips what lies between segments
        marker, position = found[1][0], found.end()
        if marker == _SCAN:
            kept.append(encoded[found.start() :])
            break
        if marker not in _BARE:
            length = int.from_bytes(encoded[position : position + 2], "big")
            position += max(length, 2)
        data = encoded[found.end() + 2 : position]
        if marker not in _METADATA or _gives_colors(marker, data):
            kept.append(encoded[found.start() : position])
        elif marker == 0xE1 and data.startswith(_EXIF):
            exif += data.removeprefix(_EXIF) if exif else data
        elif marker == 0xE1 and data.startswith(_XAP):
            xmp = data.removeprefix(_XAP)
    return b"".join(kept), _orientation(exif, xmp)


def _gives_colors(marker: int, data: bytes) -> bool:
    """Whether libjpeg takes the color space from a segment."""
    jfif = marker == 0xE0 and data.startswith(b"JFIF\0") and len(data) >= 14
    return jfif or (marker == 0xEE and data.startswith(b"Adobe") and len(data) >= 12)


def _split_png(encoded: bytes) -> tuple[bytes, int]:
    kept, position = [PNG], len(PNG)
    exif, texts = None, {}
    while position + 8 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, position)
        end = position + 12 + length
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append(encoded[position:end])
        elif kind == b"eXIf":
            exif = encoded[position + 8 : end - 4]
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            key, text = _png_text(kind, encoded[position + 8 : end - 4])
            if key == b"exif" and kind == b"tEXt":
                exif = text
            texts[key] = text
        if kind == b"IEND":
            break
        position = end
    if exif is None:
        exif = _raw_profile(texts.get(b"Raw profile type exif", b""))
    return b"".join(kept), _orientation(exif, texts.get(b"XML:com.adobe.xmp", b""))


def _png_text(kind: bytes, data: bytes) -> tuple[bytes, bytes]:
    """The key and the text of a chunk; the text is empty if unreadable."""
    key, _, text = data.partition(b"\0")
    compressed = kind == b"zTXt"
    if compressed:
        text = text[1:]
    elif kind == b"iTXt":
        compressed = text[:1] != b"\0"
        text = b"".join(text[2:].split(b"\0", 2)[2:])  # after the language and the translated key
    if compressed:
        try:
            text = zlib.decompressobj().decompress(text, _MAX_TEXT)
        except zlib.error:
            text = b""
    return key, text


def _raw_profile(text: bytes) -> bytes:
    """EXIF in hexadecimal digits, as ImageMagick writes it after three other lines."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def _split_webp(encoded: bytes) -> tuple[bytes, int]:
    stop = 8 + int.from_bytes(encoded[4:8], "little")  # may differ from the end of the file
    kept, exif, xmp, position = [], b"", b"", 12
    flags = encoded[20] if encoded[12:16] == b"VP8X" and len(encoded) > 20 else 0
    while position + 8 <= len(encoded):
        kind, length = struct.unpack_from("<4sI", encoded, position)
        end = position + 8 + length
        data, chunk = encoded[position + 8 : end], encoded[position : end + length % 2]
        if kind == b"EXIF" and flags & 8 and end <= stop:
            exif = exif or data
        elif kind == b"XMP " and flags & 4 and end <= stop:
            xmp = xmp or data
        elif kind == b"VP8X" and length:
            kept.append(chunk[:8] + bytes([flags & ~0x2C]) + chunk[9:])  # no ICC, EXIF, XMP
        elif kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            kept.append(chunk)
        position = end + length % 2
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body, _orientation(exif, xmp)


def _split_tiff(encoded: bytes) -> tuple[bytes, int]:
    """Gives tags that the pixels do not need an unknown type, so that decoders skip them.

    Nothing moves: bytes after the pixels could be taken for missing ones. If a directory claims to
    overlap what it points to, the overlap is left alone.
    """
    directory = _Directory(encoded)
    needed = [e for e in directory.entries() if directory.tag(e) in _TIFF_PIXEL_TAGS]
    places = [directory.place(entry) for entry in needed]
    places += [int(directory.number(tag) or 0) for tag in _TIFF_OFFSET_TAGS]
    stop = min((place for place in places if place > directory.start), default=len(encoded))
    plain = bytearray(encoded)
    for entry in directory.entries():
        if entry not in needed and entry + directory.entry_size <= stop:
            plain[entry + 2 : entry + 4] = b"\xff\xff"
    return bytes(plain), _orientation(encoded, directory.data(_XMP))


def _orientation(exif: bytes, xmp: bytes) -> int:
    """The orientation in EXIF (a TIFF file, perhaps prefixed by its name), otherwise in XMP."""
    found = _Directory(re.sub(rb"^(Exif\x00\x00){1,2}", b"", exif)).number(_ORIENTATION)
    if found is None:
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
        found = int(match[1]) if match else _UPRIGHT
    return int(found) if found in range(1, 9) else _UPRIGHT


class _Directory:
    """The first tag directory of a TIFF file or of EXIF; empty if unreadable."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = ">" if data.startswith(b"MM") else "<"
        big = 43 in data[2:4]  # BigTIFF
        self.entry_size, self._offset_size = (20, 8) if big else (12, 4)
        self._offset_format = self._order + ("Q" if big else "L")
        self._count_format = self._order + ("Q" if big else "H")
        self.start = self._unpack(self._offset_format, 8 if big else 4)
        if not data.startswith(TIFF) or self.start < 8:
            self.start = len(data)

    def _unpack(self, form: str, position: int) -> int:
        """The integer at a position; 0 past the end."""
        if position + struct.calcsize(form) > len(self._data):
            return 0
        (number,) = struct.unpack_from(form, self._data, position)
        return int(number)

    def entries(self) -> Iterator[int]:
        """The positions of the entries in the file."""
        first = self.start + struct.calcsize(self._count_format)
        count = self._unpack(self._count_format, self.start)
        stop = min(first + count * self.entry_size, len(self._data) - self.entry_size + 1)
        yield from range(first, stop, self.entry_size)

    def tag(self, entry: int) -> int:
        """The tag of an entry."""
        return self._unpack(self._order + "H", entry)

    def _count(self, entry: int) -> int:
        return self._unpack(self._offset_format, entry + 4)

    def _form(self, entry: int) -> str:
        """The struct format of one value; bytes if it is not a number."""
        kind = self._unpack(self._order + "H", entry + 2)
        return self._order + _NUMBERS.get(kind, "c" if kind in _BYTE_TYPES else "")

    def place(self, entry: int) -> int:
        """Where an entry claims its values are; 0 if they are in the entry itself."""
        if struct.calcsize(self._form(entry)) * self._count(entry) <= self._offset_size:
            return 0
        return self._unpack(self._offset_format, entry + 4 + self._offset_size)

    def number(self, tag: int) -> float | None:
        """The first value of a tag; 0 if it is not a number, None if there is no such tag."""
        for entry in self.entries():
            if self.tag(entry) != tag:
                continue
            form = self._form(entry)
            if form.endswith("c"):
                return 0
            field = self.place(entry) or entry + 4 + self._offset_size
            size = struct.calcsize(form)
            if size and self._count(entry) and field + size <= len(self._data):
                value, *divisors = struct.unpack_from(form, self._data, field)
                if 0 in divisors:
                    return 0
                return value / divisors[0] if divisors else value
        return None

    def data(self, tag: int) -> bytes:
        """The bytes of a tag; empty if there are none."""
        for entry in self.entries():
            if self.tag(entry) == tag:
                field = self.place(entry) or entry + 4 + self._offset_size
                return self._data[field : field + self._count(entry)]
        return b""

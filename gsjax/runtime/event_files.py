"""Removes selected values from a work directory's TensorBoard event files.

A file is a sequence of TFRecords: an 8-byte length, its 4-byte checksum, an `Event` protobuf, its
4-byte checksum. Records that stay are copied verbatim.
"""

import struct
import uuid
from collections.abc import Callable, Iterator

from etils import epath
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

from gsjax.runtime import files

_HEADER, _FOOTER = 12, 4  # bytes around an event


def forget(folder: epath.Path, is_stale: Callable[[int, str], bool]) -> None:
    """Removes events that will be written again from all event files in a folder.

    A file that has any also loses a record truncated by a kill.

    Args:
      folder: holds the files; it need not exist.
      is_stale: whether to remove the value of (step, tag); CLU writes one value per event.
    """
    for file in folder.iterdir() if folder.exists() else []:
        if "tfevents" not in file.name:
            continue
        content = file.read_bytes()
        records = list(_records(content))
        kept = [
            record
            for record, event in records
            if not any(is_stale(event.step, value.tag) for value in event.summary.value)
        ]
        if len(kept) < len(records):  # otherwise the file may be another writer's
            # Without "tfevents", so that TensorBoard ignores the file if a kill leaves it behind.
            new = file.with_name(f"events.{uuid.uuid4().hex[:8]}.new")
            with files.replacing(file, new):
                new.write_bytes(b"".join(kept))


def _records(content: bytes) -> Iterator[tuple[bytes, Event]]:
    """Yields each complete record with its event, up to the first truncated or damaged one."""
    begin = 0
    while begin + _HEADER <= len(content):
        (length,) = struct.unpack_from("<Q", content, begin)
        end = begin + _HEADER + length + _FOOTER
        if end > len(content):
            return
        try:
            event = Event.FromString(content[begin + _HEADER : end - _FOOTER])
        except DecodeError:
            return
        yield content[begin:end], event
        begin = end

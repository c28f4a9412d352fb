"""TensorBoard's event files of a work directory, as far as some of their content has to go.

A file is a row of TFRecords: a length of 8 bytes, its checksum of 4, an `Event` in protobuf, its
checksum of 4. What stays is copied as it is.
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
    """Removes the events that will be written again from all event files of a folder.

    A file that holds some loses with them a record that a kill has torn.

    Args:
      folder: of the files; it need not exist.
      is_stale: whether the value of (step, tag) goes; CLU writes one value in an event.
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
        if len(kept) < len(records):  # else the file may be another writer's
            # TensorBoard would read a name with "tfevents", which a kill could leave.
            new = file.with_name(f"events.{uuid.uuid4().hex[:8]}.new")
            with files.taking_the_place_of(file, new):
                new.write_bytes(b"".join(kept))


def _records(content: bytes) -> Iterator[tuple[bytes, Event]]:
    """Each whole record with its event, up to the first that is torn or damaged."""
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

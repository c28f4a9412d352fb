"""Writes embeddings in the form that `gsjax.evaluate.embeddings` reads."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from gsjax.data.paths import encoded
from gsjax.evaluate.embeddings import ABOUT, DAMAGED, describe, part_file
from gsjax.evaluate.features import Features
from gsjax.runtime import files


def claim(folder: epath.Path, identity: Mapping[str, Any]) -> bool:
    """Prepares a folder for embeddings of this identity.

    Parts of the same embeddings stay; those of any others are removed.

    Returns:
      Whether embeddings of another identity were removed.
    """
    known = describe(folder)
    if known is not None and known["identity"] == identity:
        return False
    with files.write_errors(folder):
        # First, so that no part is ever taken for one of another identity.
        (folder / ABOUT).unlink(missing_ok=True)
        old = files.with_suffix(folder, ".parquet")
        for file in old:
            file.unlink()
        (folder / DAMAGED).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        _write_about(folder, {"identity": identity, "complete": False})
    return bool(old)


def complete(folder: epath.Path, facts: Mapping[str, Any], damaged: Iterable[str]) -> None:
    """Marks the embeddings as complete, and lists the damaged images.

    Args:
      folder: the folder, with all parts.
      facts: further entries of `_embeddings.json`.
      damaged: their names.
    """
    names = "".join(f"{name}\n" for name in damaged)
    known = describe(folder) or {}
    with files.write_errors(folder):
        if names:
            files.write_text(folder / DAMAGED, names)
        _write_about(folder, {**known, **facts, "complete": True})


def _write_about(folder: epath.Path, about: Mapping[str, Any]) -> None:
    files.write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")


@contextlib.contextmanager
def part_writer(folder: epath.Path, part: int) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Writes a part atomically: yields a function that takes its row groups, in order.

    The bytes are a function of the rows and of the version of pyarrow.
    """
    path = part_file(folder, part)
    new = path.with_name(f"{path.name}.new")  # a fixed name: what a kill leaves behind is large
    writers: list[pq.ParquetWriter] = []
    with contextlib.ExitStack() as stack:
        with files.write_errors(path):
            stack.enter_context(files.replacing(path, new))
            file = stack.enter_context(new.open("wb"))

        def write(block: pa.RecordBatch) -> None:
            with files.write_errors(path):
                if not writers:
                    writer = pq.ParquetWriter(
                        file,
                        block.schema,
                        compression="zstd",
                        use_dictionary=False,
                        write_statistics=["index"],
                    )
                    writers.append(stack.enter_context(writer))
                writers[0].write_batch(block)

        yield write
        with files.write_errors(path):
            stack.close()


def to_block(rows: Features, paths: list[str], dtype: np.dtype) -> pa.RecordBatch:
    """Returns a block of n rows: index, path, label, valid, embedding.

    Args:
      rows: the rows; a label may be [n] or [n, C].
      paths: n paths, "" for images that are not files.
      dtype: float32 or float16.
    """
    label: pa.Array = pa.array(rows.label.reshape(-1), pa.int32())
    if rows.label.ndim > 1:
        label = pa.FixedSizeListArray.from_arrays(label, rows.label.shape[1])
    flat = pa.array(np.ascontiguousarray(rows.feature, dtype).reshape(-1))
    return pa.RecordBatch.from_arrays(
        [
            pa.array(rows.indices, pa.int64()),
            pa.array([_portable(path) for path in paths], pa.string()),
            label,
            pa.array(rows.valid),
            pa.FixedSizeListArray.from_arrays(flat, rows.feature.shape[1]),
        ],
        ["index", "path", "label", "valid", "embedding"],
    )


def _portable(path: str) -> str:
    """A path as UTF-8; bytes that are not become escapes, since Parquet cannot hold them."""
    return encoded(path).decode("utf-8", "backslashreplace")

"""Embeddings on disk: a folder of Parquet files that any program can read.

A folder holds `part-00000.parquet`, `part-00001.parquet`, ..., each with the same number of rows
except the last; `_embeddings.json`, which says what they are; and, if images are damaged,
`_damaged.txt`. Parquet readers skip names that begin with an underscore.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from gsjax.errors import UserError
from gsjax.runtime import files

ABOUT = "_embeddings.json"
DAMAGED = "_damaged.txt"
GROUP_ROWS = 4096  # rows of a row group
READ_ROWS = 65536  # rows read at a time


class Layout(NamedTuple):
    """How rows are divided into parts.

    Attributes:
      num_rows: rows of all parts.
      part_rows: rows of each part but the last.
    """

    num_rows: int
    part_rows: int

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return -(-self.num_rows // self.part_rows)

    def rows_of(self, part: int) -> np.ndarray:
        """Returns the indices of a part's rows, int64 [n]."""
        return np.arange(part * self.part_rows, min((part + 1) * self.part_rows, self.num_rows))


class Rows(NamedTuple):
    """Rows as they are read.

    Attributes:
      embedding: float32 [n, F].
      indices: int64 [n] indices in the data set.
    """

    embedding: np.ndarray
    indices: np.ndarray


def part_file(folder: epath.Path, part: int) -> epath.Path:
    """The file of a part."""
    return folder / f"part-{part:05}.parquet"


def missing_parts(folder: epath.Path, layout: Layout) -> list[int]:
    """Returns the parts that have no file, ascending."""
    present = {file.name for file in files.with_suffix(folder, ".parquet")}
    parts = range(layout.num_parts)
    return [part for part in parts if part_file(folder, part).name not in present]


def describe(folder: epath.Path) -> dict[str, Any] | None:
    """Returns what `_embeddings.json` says, or None if there is none.

    Raises:
      UserError: it is damaged.
    """
    file = folder / ABOUT
    try:
        return json.loads(file.read_text()) if file.exists() else None
    except files.error_types(ValueError) as error:
        raise UserError(
            f"{files.shown(file)} is damaged: remove {files.shown(folder)} and rerun the job embed"
        ) from error


def columns_of(file: epath.Path, *names: str) -> dict[str, np.ndarray]:
    """Reads columns of a part: embeddings are [n, F], others [n] or [n, C].

    Raises:
      UserError: it is missing or damaged.
    """
    with _read_errors(file), file.open("rb") as stream, pq.ParquetFile(stream) as part:
        table = part.read(list(names))
    return {name: _as_array(table[name]) for name in names}


def num_features(file: epath.Path) -> int:
    """Returns the length F of the embeddings in a part."""
    with _read_errors(file), file.open("rb") as stream, pq.ParquetFile(stream) as part:
        return part.schema_arrow.field("embedding").type.list_size


class Embeddings:
    """Complete embeddings in a folder.

    Attributes:
      folder: the folder.
      about: what its `_embeddings.json` says.
    """

    def __init__(self, folder: epath.Path) -> None:
        """Opens them.

        Raises:
          UserError: there are none, or the job that writes them has not finished.
        """
        known = describe(folder)
        if known is None:
            raise UserError(f"{files.shown(folder)} holds no embeddings: run the job embed first")
        if not known["complete"]:
            raise UserError(
                f"{files.shown(folder)} is incomplete: rerun the job embed, which resumes"
            )
        self.folder, self.about = folder, known
        layout = Layout(known["num_rows"], known["identity"]["part_rows"])
        self._parts = [part_file(folder, part) for part in range(layout.num_parts)]

    @property
    def num_rows(self) -> int:
        """Number of rows, damaged images included."""
        return self.about["num_rows"]

    @property
    def num_features(self) -> int:
        """Length F of an embedding."""
        return self.about["num_features"]

    @property
    def num_valid(self) -> int:
        """Number of rows of images that could be decoded."""
        return self.about["num_rows"] - self.about["num_damaged"]

    def columns(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """Yields these columns of each part in turn; see `columns_of`."""
        return (columns_of(file, *names) for file in self._parts)

    def at(self, index: np.ndarray, *names: str) -> dict[str, np.ndarray]:
        """Returns these columns of the rows of some images, in the order of `index` [n]."""
        part_rows = self.about["identity"]["part_rows"]
        found: dict[str, np.ndarray] = {}
        for part in np.unique(index // part_rows):
            columns = columns_of(self._parts[part], *names)
            own = index // part_rows == part
            for name, column in columns.items():
                shape = (len(index), *column.shape[1:])
                found.setdefault(name, np.empty(shape, column.dtype))
                found[name][own] = column[index[own] % part_rows]
        return found

    def chunks(self, num_rows: int = READ_ROWS, first: int = 0) -> Iterator[Rows]:
        """Yields the rows of images that could be decoded, `num_rows` at a time.

        The first `first` of them are skipped.
        """
        waiting: list[Rows] = []
        count = 0
        for block in self._blocks(first):
            while count + len(block.indices) >= num_rows:
                taken = num_rows - count
                yield _joined([*waiting, Rows(*(column[:taken] for column in block))])
                block = Rows(*(column[taken:] for column in block))
                waiting, count = [], 0
            waiting.append(block)
            count += len(block.indices)
        if count:
            yield _joined(waiting)

    def _blocks(self, skipped: int) -> Iterator[Rows]:
        names = ["index", "valid", "embedding"]
        for file in self._parts:
            if skipped:  # without decoding a part that is skipped as a whole
                count = int(columns_of(file, "valid")["valid"].sum())
                if count <= skipped:
                    skipped -= count
                    continue
            with _read_errors(file), file.open("rb") as stream, pq.ParquetFile(stream) as part:
                for batch in part.iter_batches(GROUP_ROWS, columns=names):
                    places = np.flatnonzero(_as_array(batch["valid"]))
                    taken, skipped = places[skipped:], max(skipped - len(places), 0)
                    rows = _as_array(batch["embedding"])[taken].astype(np.float32, copy=False)
                    yield Rows(rows, _as_array(batch["index"])[taken])


def _joined(parts: list[Rows]) -> Rows:
    return Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _as_array(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, column.type.list_size)
    return column.to_numpy(zero_copy_only=False)


@contextlib.contextmanager
def _read_errors(file: epath.Path) -> Iterator[None]:
    try:
        yield
    except files.error_types(pa.ArrowException) as error:
        raise UserError(
            f"{files.shown(file)} cannot be read ({files.reason(error)}): remove it and rerun the "
            "job embed"
        ) from error

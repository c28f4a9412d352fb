"""Ground truth of a retrieval set in the format of revisited Oxford/Paris."""

import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from gsjax.data.paths import names_in
from gsjax.errors import UserError
from gsjax.runtime import pickles
from gsjax.runtime.files import shown

DIFFICULTIES = ("easy", "medium", "hard")

_HOW_TO_GET = (
    "get gnd_roxford5k.pkl and gnd_rparis6k.pkl from https://cmp.felk.cvut.cz/revisitop and the "
    "images, as jpg/<image>.jpg next to the ground truth, from the pages of VGG's Oxford Buildings "
    "and Paris Buildings"
)


class Query(NamedTuple):
    """One query: its image, the object in it, and the answers as database indices.

    Attributes:
      name: name of the image, without .jpg.
      box: box of the object: x0, y0, x1, y1 in pixels of the query image.
      easy: int64 [E].
      hard: int64 [H].
      junk: int64 [J].
    """

    name: str
    box: tuple[float, float, float, float]
    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray


class GroundTruth(NamedTuple):
    """A retrieval set.

    Attributes:
      names: names of the database images, without .jpg.
      queries: queries in the order of the file.
    """

    names: tuple[str, ...]
    queries: tuple[Query, ...]


def load(folder: epath.PathLike, name: str) -> GroundTruth:
    """Reads `gnd_<name>.pkl`, or without it `gnd_<name>.json`.

    The file is a dict of `imlist` and `qimlist` (names of images, without .jpg) and `gnd`, a
    list with a dict per query of `bbx` (x0, y0, x1, y1 in pixels of the query image), `easy`,
    `hard` and `junk` (indices into `imlist`). A pickle is read without running code.

    Args:
      folder: local or gs://.
      name: roxford5k, rparis6k or the name of your own set.

    Returns:
      Names and queries in the order of the file.

    Raises:
      UserError: the file is missing, damaged, not plain data, or inconsistent.

    Source of the format: github.com/filipradenovic/revisitop.
    """
    folder = epath.Path(folder).expanduser()
    files = [folder / f"gnd_{name}.{ending}" for ending in ("pkl", "json")]
    path = next((file for file in files if file.exists()), None)
    if path is None:
        raise UserError(
            f"no {shown(files[0].name)} or {shown(files[1].name)} in {shown(folder)}: {_HOW_TO_GET}"
        )
    read = _read_pickle if path == files[0] else json.loads
    try:
        content = read(path.read_bytes())
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror}") from error
    except pickles.UnsafePickle as refused:
        raise UserError(
            f"{shown(path)} contains {refused}; only dicts, lists, strings and numbers are read "
            "from a pickle. If you trust it, convert it to JSON as "
            f"{shown(files[1].name)} and delete the pickle"
        ) from refused
    except Exception as error:  # damaged bytes make pickle raise almost anything
        raise UserError(
            f"{shown(path)} is damaged or truncated ({type(error).__name__}): "
            "download or create it again"
        ) from error
    return _parse(content, path)


def image_paths(
    folder: epath.PathLike, truth: GroundTruth
) -> tuple[list[epath.Path], list[epath.Path]]:
    """Returns the image paths of the database and of the queries, after checking that they exist.

    Args:
      folder: as in `load`; the images are `jpg/<image>.jpg` in it.
      truth: M names and Q queries.

    Returns:
      M paths and Q paths.

    Raises:
      UserError: images are missing.
    """
    pictures = epath.Path(folder).expanduser() / "jpg"
    if not pictures.is_dir():
        raise UserError(f"no image folder {shown(pictures)}: {_HOW_TO_GET}")
    present = set(names_in(pictures.as_posix()))  # one listing, not a query per image
    names = [*truth.names, *(query.name for query in truth.queries)]
    missing = [name for name in names if f"{name}.jpg" not in present]
    if missing:
        first = f"'{shown(missing[0])}.jpg'"
        raise UserError(
            f"{shown(pictures)} lacks {len(missing)} of {len(names)} images, such as {first}: "
            f"{_HOW_TO_GET}"
        )
    paths = [pictures / f"{name}.jpg" for name in names]
    return paths[: len(truth.names)], paths[len(truth.names) :]


def positives_and_junk(query: Query, difficulty: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positives, and what counts neither way, at one of the DIFFICULTIES.

    Args:
      query: its lists `easy`, `hard` and `junk`.
      difficulty: easy, medium or hard.

    Returns:
      int64 [P] and [J] database indices. A query with P = 0 is left out of the mean.

    Source: Radenovic et al., CVPR 2018, section 3.3.
    """
    nothing = query.easy[:0]
    positives, junk = {
        "easy": ((query.easy, nothing), (query.junk, query.hard)),
        "medium": ((query.easy, query.hard), (query.junk, nothing)),
        "hard": ((query.hard, nothing), (query.junk, query.easy)),
    }[difficulty]
    return np.concatenate(positives), np.concatenate(junk)


def _read_pickle(data: bytes) -> Any:
    return pickles.load(io.BytesIO(data), {}, plain=True)


def _parse(content: Any, path: epath.Path) -> GroundTruth:
    """Checks the structure; errors name the file and the query."""
    if not isinstance(content, dict):
        raise UserError(f"{shown(path)} must contain a dict of imlist, qimlist and gnd")
    lists = []
    for key in ("imlist", "qimlist", "gnd"):
        if not isinstance(content.get(key), list | tuple) or not content[key]:
            raise UserError(f"{shown(path)}: {key!r} must be a non-empty list")
        lists.append(content[key])
    names, query_names, answers = lists
    for key in ("imlist", "qimlist"):
        for number, name in enumerate(content[key]):
            if not isinstance(name, str) or not name:
                raise UserError(f"{shown(path)}: entry {number} of {key!r} is not an image name")
    if len(query_names) != len(answers):
        raise UserError(
            f"{shown(path)} has {len(query_names)} names in 'qimlist' but {len(answers)} entries "
            "in 'gnd'; it must have one of each per query"
        )
    queries = []
    for number, (name, answer) in enumerate(zip(query_names, answers, strict=True)):
        try:
            queries.append(_parse_query(name, answer, len(names)))
        except ValueError as error:
            raise UserError(f"{shown(path)}, query {number} ({name!r}): {error}") from error
    return GroundTruth(tuple(names), tuple(queries))


def _parse_query(name: str, answer: Any, num_pictures: int) -> Query:
    keys = ("bbx", "easy", "hard", "junk")
    if not isinstance(answer, dict) or not all(
        isinstance(answer.get(key), list | tuple) for key in keys
    ):
        raise ValueError(f"its entry in 'gnd' must be a dict with the lists {', '.join(keys)}")
    box = answer["bbx"]
    if len(box) != 4 or not all(_is_number(side) for side in box):
        raise ValueError("'bbx' must be four numbers x0, y0, x1, y1")
    x0, y0, x1, y1 = (float(side) for side in box)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"its box x0, y0, x1, y1 = {x0:g}, {y0:g}, {x1:g}, {y1:g} is empty")
    indices = [_parse_indices(key, answer[key], num_pictures) for key in keys[1:]]
    merged = np.sort(np.concatenate(indices))
    repeated = merged[1:][merged[1:] == merged[:-1]]
    if len(repeated):
        raise ValueError(
            f"image {repeated[0]} appears twice in its lists 'easy', 'hard' and 'junk'"
        )
    return Query(name, (x0, y0, x1, y1), *indices)


def _parse_indices(key: str, indices: Sequence[Any], num_pictures: int) -> np.ndarray:
    for index in indices:
        if type(index) is not int or not 0 <= index < num_pictures:
            raise ValueError(
                f"{key!r} must contain indices from 0 to {num_pictures - 1}, not {index!r:.40}"
            )
    return np.array(indices, np.int64)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9  # NaN fails this comparison

"""The built-in data set: tiles of color photographs that come with installed packages."""

import functools
import importlib.util
import pathlib
import zlib

import numpy as np
from PIL import Image

from gsjax.errors import UserError

# (package, file in it); a tile's label is the index of its photograph here.
_PHOTOS = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/retina.jpg"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
_TILES = {"train": 500, "test": 200}  # per photograph
_LONG_SIDE = 640  # larger photographs are shrunk to it, so that all have a similar scale
_MAX_GRID = 4  # rows and columns of blocks


def names() -> tuple[str, ...]:
    """The photographs, in the order of their labels."""
    return tuple(pathlib.PurePath(file).stem for _, file in _PHOTOS)


def photographs() -> dict[str, np.ndarray]:
    """The whole photographs by name, each uint8 [H, W, 3] with its longer side at most 640.

    Raises:
      UserError: one is missing.
    """
    return dict(zip(names(), (_load(package, file) for package, file in _PHOTOS), strict=True))


def tiles(split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the tiles of a split.

    Each photograph is divided into blocks: every third is for testing, the others are for training.
    A tile lies within one block, so no pixel is in tiles of both splits. The positions of the tiles
    are fixed.

    Args:
      split: `train` (500 tiles per photograph) or `test` (200).
      size: side S of a tile in pixels.

    Returns:
      (tiles, labels): uint8 [N, S, S, 3] and int32 [N], photograph by photograph.

    Raises:
      UserError: the split is unknown, tiles do not fit into the blocks, or a photograph is missing.
    """
    if split not in _TILES:
        raise UserError(f"data.source=photos has no split {split!r}; it has {', '.join(_TILES)}")
    cut = []
    for label, (package, file) in enumerate(_PHOTOS):
        photo = _load(package, file)
        height, width, _ = photo.shape
        boxes = blocks(height, width, size)
        boxes = [box for i, box in enumerate(boxes) if (i % 3 == 1) == (split == "test")]
        generator = np.random.default_rng([zlib.crc32(split.encode()), label])
        for top, left, height, width in (boxes[i % len(boxes)] for i in range(_TILES[split])):
            y = top + generator.integers(height - size + 1)
            x = left + generator.integers(width - size + 1)
            cut.append(photo[y : y + size, x : x + size])
    return np.stack(cut), np.repeat(np.arange(len(_PHOTOS), dtype=np.int32), _TILES[split])


def blocks(height: int, width: int, size: int) -> list[tuple[int, int, int, int]]:
    """Divides a photograph into a grid of blocks that hold tiles: (top, left, height, width)."""
    rows, columns = (min(max(side // (2 * size), 1), _MAX_GRID) for side in (height, width))
    if rows * columns == 1:
        rows, columns = (2, 1) if height > width else (1, 2)
    tops = np.linspace(0, height, rows + 1).astype(int)
    lefts = np.linspace(0, width, columns + 1).astype(int)
    if min(*np.diff(tops), *np.diff(lefts)) < size:
        raise UserError(
            f"data.image_size={size} is too large for data.source=photos: use at most 224"
        )
    return [
        (int(top), int(left), int(bottom - top), int(right - left))
        for top, bottom in zip(tops, tops[1:], strict=False)
        for left, right in zip(lefts, lefts[1:], strict=False)
    ]


@functools.cache
def _load(package: str, file: str) -> np.ndarray:
    spec = importlib.util.find_spec(package)  # without the import, which takes a second
    folders = spec.submodule_search_locations if spec else None
    path = pathlib.Path(folders[0], file) if folders else None
    if path is None or not path.is_file():
        raise UserError(
            f"data.source=photos needs {file} from the Python package {package}: "
            "install scikit-image and scikit-learn"
        )
    with Image.open(path) as picture:
        photo = picture.convert("RGB")
    photo.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(photo)

"""Tiny data sets of photograph tiles, as folders."""

import json

import numpy as np
from PIL import Image

from gsjax.data import photos


def write_classes(root, per_class):
    """Class folders of photograph tiles."""
    for split, source in (("train", "train"), ("test", "test")):
        tiles, labels = photos.tiles(source, 20)
        for label in range(3):
            folder = root / split / photos.names()[label]
            folder.mkdir(parents=True)
            for i, tile in enumerate(tiles[labels == label][:per_class]):
                Image.fromarray(tile).save(folder / f"{i}.png")


def write_retrieval(root, broken=False):
    """Two queries; the right answers are tiles of the same photograph."""
    tiles, labels = photos.tiles("test", 32)
    (root / "toy/jpg").mkdir(parents=True)
    names, queries, answers = [], [], []
    for label in range(4):
        for i, tile in enumerate(tiles[labels == label][:4]):
            names.append(f"{label}_{i}")
            Image.fromarray(tile).save(root / f"toy/jpg/{label}_{i}.jpg")
    for label in range(2):
        wide = np.zeros((40, 50, 3), np.uint8)
        wide[4:36, 10:42] = tiles[labels == label][0]
        Image.fromarray(wide).save(root / f"toy/jpg/query{label}.jpg")
        queries.append(f"query{label}")
        first = 4 * label
        easy = [first, first + 1] if label else []
        answers.append(
            {"bbx": [10, 4, 42, 36], "easy": easy, "hard": [first + 2], "junk": [first + 3]}
        )
    if broken:
        (root / "toy/jpg/1_1.jpg").write_bytes(b"damaged")
    truth = {"imlist": names, "qimlist": queries, "gnd": answers}
    (root / "toy/gnd_toy.json").write_text(json.dumps(truth))

"""The job `search`: neighbors and near duplicates against plain NumPy, and their pages."""

import base64
import csv
import html.parser
import io

import numpy as np
import pytest
from evaluations import evaluate
from PIL import Image, ImageOps
from scipy.sparse.csgraph import connected_components

from gsjax.data import photos
from gsjax.errors import UserError
from gsjax.evaluate import duplicates, embed, nearest, search
from gsjax.evaluate.embeddings import Embeddings


def rows(count, features=16, seed=0):
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("sizes", [[50], [20, 20, 10], [1] * 50, [7, 43]])
def test_neighbors_in_parts_are_those_of_the_whole(sizes):
    bank, queries = rows(50), rows(9, seed=1)
    names = np.random.default_rng(2).permutation(1000)[:50]  # positions may be any numbers
    ends = np.cumsum(sizes)[:-1]
    parts = zip(np.split(bank, ends), np.split(names, ends), strict=True)
    done = []
    cosines, found = nearest.find_in_parts(parts, queries, 5, done.append)
    expected = unit(queries) @ unit(bank).T
    order = np.argsort(-expected, axis=1)[:, :5]
    np.testing.assert_array_equal(found, names[order])
    np.testing.assert_allclose(cosines, np.take_along_axis(expected, order, 1), rtol=1e-5)
    assert done == np.cumsum(sizes).tolist()


def groups_by_hand(x, above):
    """All pairs at once: connected components, and the largest cosine of each row."""
    cosines = unit(x) @ unit(x).T
    np.fill_diagonal(cosines, -1)
    _, label = connected_components(cosines > above, directed=False)
    members = [np.flatnonzero(label == i) for i in range(label.max() + 1)]
    return [m for m in members if len(m) > 1], cosines.max(axis=1)


@pytest.mark.parametrize(("num_rows", "block", "slab"), [(60, 7, 3), (64, 16, 1), (5, 16, 1)])
@pytest.mark.parametrize("above", [0.3, 0.7, 0.99])
def test_duplicates_are_those_of_all_pairs(monkeypatch, num_rows, block, slab, above):
    x = rows(num_rows, 4)
    x[num_rows // 2] = 3 * x[0]
    monkeypatch.setattr(duplicates, "_SLAB_BYTES", 4 * 4 * block * slab)
    monkeypatch.setattr(duplicates, "_MERGE_AT", 10)
    done = []
    found = duplicates.find_groups(
        lambda first: (x[i : i + block] for i in range(first, num_rows, block)),
        num_rows, 4, above, block, done.append,
    )  # fmt: skip
    members, largest = groups_by_hand(x, above)
    assert [m.tolist() for m in found.members] == [m.tolist() for m in members]
    for rows_of_group, similarity in zip(found.members, found.similarity, strict=True):
        np.testing.assert_allclose(similarity, largest[rows_of_group], rtol=1e-5)
    assert done == sorted(done) and done[-1] == num_rows * (num_rows - 1) // 2


def test_rows_of_zeros_are_no_duplicates():
    found = duplicates.find_groups(lambda first: iter([np.zeros((9, 4), np.float32)]), 9, 4, 0.1)
    assert found.members == []


class Page(html.parser.HTMLParser):
    """What a contact sheet shows."""

    def __init__(self, text):
        super().__init__()
        self.titles, self.pictures, self.captions, self.links = [], [], [], []
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._tag = tag
        values = dict(attributes)
        if tag == "img":
            data = values["src"].removeprefix("data:image/jpeg;base64,")
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
        self.links += [value for key, value in attributes if key in ("src", "href")]

    def handle_data(self, text):
        if text.strip() and self._tag in ("h2", "figcaption"):
            (self.titles if self._tag == "h2" else self.captions).append(text.strip())


@pytest.fixture
def planted(workdir, tmp_path):
    """Embeddings of 24 pictures and ten near duplicates of the first ones: by name, the original.

    Duplicates are resized, recompressed or flipped. One picture is damaged.
    """
    folder = tmp_path / "mine & <yours>"
    folder.mkdir()
    tiles, labels = photos.tiles("test", 64)
    chosen = [np.flatnonzero(labels == label)[k] for k in (0, 40, 80) for label in range(8)]
    copies = {}
    for i, tile in enumerate(tiles[chosen]):
        picture = Image.fromarray(tile)
        picture.save(folder / f"{i:02}.png")
        if i < 10:
            change = [
                lambda p: p.resize((48, 48)), lambda p: p, ImageOps.mirror,
            ][i % 3]  # fmt: skip
            change(picture).save(folder / f"copy{i:02}.jpg", quality=80)
            copies[f"copy{i:02}.jpg"] = f"{i:02}.png"
    (folder / "damaged.png").write_bytes(b"")
    evaluate(
        embed, workdir, embed__source="folder", embed__data_dir=folder, embed__flip="true",
        embed__name="own", embed__rows_per_file="16", features__batch_size="16",
    )  # fmt: skip
    return folder, copies


def table(file):
    return list(csv.DictReader(io.StringIO(file.read_text())))


def test_every_picture_finds_itself_first(workdir, planted, capsys):
    folder, _ = planted
    evaluate(search, workdir, search__queries=folder, search__neighbors="4", search__pictures="3")
    found = table(workdir / "search/own/neighbors.csv")
    assert len(found) == 34 * 4
    first = [row for row in found if row["rank"] == "1"]
    assert all(row["path"] == row["query"] for row in first)
    assert all(abs(float(row["similarity"]) - 1) < 1e-3 for row in first)
    (columns,) = [c for c in [Embeddings(workdir / "embeddings/own")]]
    parts = list(columns.columns("embedding", "valid", "path"))
    x, valid, paths = (np.concatenate([p[n] for p in parts]) for n in parts[0])
    cosines = unit(x[valid]) @ unit(x[valid]).T
    order = np.argsort(-cosines[5])[:4]
    own = [row for row in found if row["query"] == paths[valid][5]]
    np.testing.assert_allclose([float(r["similarity"]) for r in own], cosines[5][order], atol=1e-4)
    page = Page((workdir / "search/own/neighbors.html").read_text())
    assert page.titles == [row["query"] for row in first[:3]]
    assert len(page.pictures) == 3 * 5 and page.captions[:2] == ["query", "1.000 00.png"]
    assert max(max(picture.size) for picture in page.pictures) <= 160
    assert all(link.startswith("data:") for link in page.links)
    assert "left out 1 of 35" in capsys.readouterr().out


def test_planted_duplicates_are_found(workdir, planted, capsys):
    _, copies = planted
    evaluate(search, workdir, search__duplicates_above="0.999")
    groups = {}
    for row in table(workdir / "search/own/duplicates.csv"):
        groups.setdefault(row["group"], []).append(row)
    names = [[row["path"].rsplit("/", 1)[1] for row in group] for group in groups.values()]
    for copy, original in copies.items():
        assert any({copy, original} <= set(group) for group in names)
    assert all([row["first"] for row in group][:2] == ["1", "0"] for group in groups.values())
    page = Page((workdir / "search/own/duplicates.html").read_text())
    assert len(page.titles) == len(groups) and len(page.pictures) == sum(map(len, names))
    assert f"in {len(groups)} groups" in capsys.readouterr().out


def test_pictures_that_have_changed_are_not_drawn(workdir, planted, capsys):
    folder, copies = planted
    evaluate(search, workdir, search__duplicates_above="0.999")
    for copy in copies:
        (folder / copy).unlink()
    evaluate(search, workdir, search__duplicates_above="0.999")
    assert "no pictures: " in capsys.readouterr().out
    assert not (workdir / "search/own/duplicates.html").exists()  # it showed other pictures
    assert (workdir / "search/own/duplicates.csv").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "set search.queries to images, or search.duplicates_above"),
        ({"search__queries": "/nowhere.jpg"}, "there is no file or folder /nowhere.jpg"),
        ({"search__queries": "x", "search__embeddings": "other"}, "other holds no embeddings"),
        (
            {"search__queries": "x", "features__interpolation": "bicubic"},
            "was written with another transform: rerun the job embed",
        ),
    ],
)
def test_what_is_refused(workdir, planted, changes, expected):
    with pytest.raises(UserError, match=expected):
        evaluate(search, workdir, **changes)


def test_which_embeddings(workdir):
    with pytest.raises(UserError, match="holds no embeddings: run the job embed"):
        evaluate(search, workdir, search__duplicates_above="0.9")
    for name in ("one", "two"):
        (workdir / "embeddings" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="set search.embeddings to one of one, two"):
        evaluate(search, workdir, search__duplicates_above="0.9")

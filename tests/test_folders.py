"""Which files of a folder are pictures: links, litter, extensions, class folders."""

import os
import random

import numpy as np
import pytest

from gsjax.config import defaults
from gsjax.data import folders, sources
from gsjax.errors import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def names(root):
    return folders.list_images(str(root)).names


def opened(root, labeled=True):
    data = defaults.get_config().data
    data.source, data.data_dir = "folder", str(root)
    return sources.open_source(data, "", labeled)


def test_folders_that_link_to_each_other(tmp_path, capsys):
    """The 24 pictures were 984: the links were followed in circles until a path was too long."""
    touch(tmp_path, *(f"{folder}/{i}.jpg" for folder in "ab" for i in range(12)))
    link(tmp_path / "a/more", "../b")
    link(tmp_path / "b/more", "../a")
    source = opened(tmp_path)
    real = sorted(str(path) for folder in "ab" for path in (tmp_path / folder).glob("*.jpg"))
    assert list(source.paths) == real
    assert source.class_names == ("a", "b")
    np.testing.assert_array_equal(source.labels, [0] * 12 + [1] * 12)
    assert "a/more links to b, whose class is used (2 such links)" in capsys.readouterr().out


LOOPS = {
    "itself": {"a/loop": "loop"},
    "its folder": {"a/here": "."},
    "its parent": {"a/up": ".."},
    "the folder above the root": {"a/up": "../.."},
    "the root of the disk": {"a/top": "/"},
    "three folders": {"a/x": "../b", "b/x": "../c", "c/x": "../a"},
    "a link to a link": {"a/x": "../b/y", "b/y": "../a"},
    "another class": {"a/x": "../b"},
    "a file of another class": {"a/x.jpg": "../b/1.jpg", "c/y.jpg": "../a/x.jpg"},
    "a file beside it": {"a/0.jpg": "1.jpg"},
    "a file through a linked folder": {"a/x": "../b", "a/y.jpg": "x/1.jpg"},
}


@pytest.mark.parametrize("kind", LOOPS)
def test_links_within_the_folder_add_nothing(tmp_path, kind):
    touch(tmp_path, "root/a/1.jpg", "root/b/1.jpg", "root/c/1.jpg", "beside/2.jpg")
    for path, target in LOOPS[kind].items():
        link(tmp_path / "root" / path, target)
    listing = folders.list_images(str(tmp_path / "root"))
    assert listing.names == ["a/1.jpg", "b/1.jpg", "c/1.jpg"]
    assert listing.folders == ["a", "b", "c"]


def test_links_to_elsewhere_are_followed_once(tmp_path):
    touch(tmp_path, "pool/1.jpg", "pool/deep/2.jpg", "pool/.hidden.jpg", "root/b/3.jpg")
    link(tmp_path / "pool/back", tmp_path / "root/b")
    link(tmp_path / "pool/out", tmp_path)
    link(tmp_path / "root/c", tmp_path / "pool")
    link(tmp_path / "root/d", tmp_path / "pool/deep")
    link(tmp_path / "root/a.jpg", tmp_path / "pool/1.jpg")
    link(tmp_path / "root/b/hidden.jpg", tmp_path / "pool/.hidden.jpg")
    listing = folders.list_images(str(tmp_path / "root"))
    assert listing.names == ["a.jpg", "b/3.jpg", "b/hidden.jpg", "c/deep/2.jpg"]
    assert listing.duplicates == [("c/1.jpg", "a.jpg"), ("c/back", "b"), ("d", "c/deep")]


def test_links_to_a_folder_around_the_root_or_around_the_link_are_not_followed(tmp_path):
    touch(tmp_path, "base/root/1.jpg", "base/2.jpg", "far/pool/3.jpg", "far/4.jpg")
    link(tmp_path / "base/root/a", tmp_path / "far/pool")
    link(tmp_path / "far/pool/base", tmp_path / "base")  # it holds the root, not the link
    link(tmp_path / "far/pool/far", tmp_path / "far")  # it holds the link, not the root
    assert names(tmp_path / "base/root") == ["1.jpg", "a/3.jpg"]


def test_labeled_folders_of_links(tmp_path, capsys):
    """Class folders that are links, and class folders of links to files."""
    touch(tmp_path, "cats/1.jpg", "cats/2.jpg", "pool/x.jpg", "pool/y.jpg", "pool/z.jpg")
    link(tmp_path / "train/cat", tmp_path / "cats")
    link(tmp_path / "train/dog/1.jpg", "../../pool/x.jpg")
    link(tmp_path / "train/owl/1.jpg", tmp_path / "pool/y.jpg")
    link(tmp_path / "train/owl/2.jpg", "1.jpg")
    source = opened(tmp_path / "train")
    assert source.class_names == ("cat", "dog", "owl")
    np.testing.assert_array_equal(source.labels, [0, 0, 1, 2])
    assert capsys.readouterr().out == ""
    link(tmp_path / "train/owl/3.jpg", tmp_path / "pool/x.jpg")
    np.testing.assert_array_equal(opened(tmp_path / "train").labels, [0, 0, 1, 2])
    assert "owl/3.jpg links to dog/1.jpg, whose class is used\n" in capsys.readouterr().out


def test_hard_links_are_separate_files_and_links_to_nowhere_missing_ones(tmp_path):
    touch(tmp_path, "1.jpg")
    os.link(tmp_path / "1.jpg", tmp_path / "2.jpg")
    link(tmp_path / "3.jpg", "nowhere.jpg")
    link(tmp_path / "4.jpg", "nowhere.jpg")
    link(tmp_path / "nowhere", "neither")
    assert names(tmp_path) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]


def _random_tree(root, generator):
    """Folders and files, some outside of the root, and links of all kinds between them."""
    places = [root / "in"]
    for _ in range(12):
        places.append(generator.choice(places) / generator.choice("abcd"))
    places += [root / "out", root / "out/e", root / "out/e/f"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    for _ in range(15):
        touch(generator.choice(places), f"{generator.randrange(9)}.jpg")
    everything = [*root.rglob("*")]
    for number in range(12):
        path = generator.choice(places) / f"l{number}{generator.choice(['', '.jpg'])}"
        target = generator.choice(everything)
        path.symlink_to(os.path.relpath(target, path.parent) if number % 2 else target)


def _reachable(root):
    """The real paths of all files that can be reached from a folder, by brute force."""
    found, folders_seen = set(), set()

    def visit(folder):
        real = os.path.realpath(folder)
        if (
            real in folders_seen
            or f"{os.path.realpath(root)}/".startswith(f"{real}/")
            and (folder != root)
        ):
            return
        folders_seen.add(real)
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            target = os.path.realpath(path)
            if os.path.isdir(path):
                if not (os.path.islink(path) and f"{real}/".startswith(f"{target}/")):
                    visit(path)
            elif path.endswith(".jpg"):
                found.add(target)

    visit(root)
    return found


@pytest.mark.parametrize("seed", range(40))
def test_each_file_counts_once_in_an_order_of_its_own(tmp_path, monkeypatch, seed):
    _random_tree(tmp_path, random.Random(seed))
    root = str(tmp_path / "in")
    listed = names(root)
    reals = [os.path.realpath(f"{root}/{name}") for name in listed]
    assert len(set(reals)) == len(reals)
    assert set(reals) == _reachable(root)
    for name, real in zip(listed, reals, strict=True):  # the real path, where it lies within
        assert not real.startswith(f"{root}/") or name == os.path.relpath(real, root)
    original = os.scandir

    class Shuffled:
        def __init__(self, folder):
            with original(folder) as entries:
                self._entries = list(entries)
            random.Random(seed).shuffle(self._entries)

        def __enter__(self):
            return iter(self._entries)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert names(root) == listed


LITTER = [
    "@eaDir/a.jpg",
    "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_B.jpg",
    ".Trashes/1.jpg",
    "__MACOSX/cat/._1.jpg",
    "cat/._1.jpg",
    "cat/Thumbs.db",
    "$RECYCLE.BIN/$R1.jpg",
    "System Volume Information/1.jpg",
    "#recycle/1.jpg",
    "lost+found/1.jpg",
    ".ipynb_checkpoints/1-checkpoint.jpg",
    ".AppleDouble/1.jpg",
    "cat/.DS_Store",
    ".thumbnails/1.jpg",
    "cat/desktop.ini",
    "cat/Icon\r",
]


def test_litter_is_neither_a_picture_nor_a_class_nor_reported(tmp_path, capsys):
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg", *LITTER)
    source = opened(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in source.paths] == ["cat/1.jpg", "dog/1.jpg"]
    assert source.class_names == ("cat", "dog")
    assert capsys.readouterr().out == ""
    (tmp_path / ".cache/pictures").mkdir(parents=True)  # below the root alone
    touch(tmp_path, ".cache/pictures/1.jpg")
    assert names(tmp_path / ".cache/pictures") == ["1.jpg"]


def test_extensions(tmp_path, capsys):
    good = ["a.jpg", "b.JPEG", "c.jpe", "d.JFIF", "e.png", "f.Webp", "g.bmp", "h.tif", "i.TIFF"]
    touch(tmp_path, *good, "x.txt", "y.TXT", "z.mp4", "README", "x.jpg.part")
    link(tmp_path / "w.txt", "x.txt")
    assert names(tmp_path) == good
    opened(tmp_path, labeled=False)
    opened(tmp_path, labeled=False)
    assert capsys.readouterr().out == (
        f"ignored 6 files in {tmp_path} without an image extension: "
        ".txt 3, no extension 1, .mp4 1, .part 1\n"
    )


def test_a_class_folder_without_pictures_stays_a_class(tmp_path, capsys):
    touch(tmp_path, "cat/1.jpg", "owl/1.jpg")
    (tmp_path / "dog").mkdir()
    source = opened(tmp_path)
    assert source.class_names == ("cat", "dog", "owl")
    np.testing.assert_array_equal(source.labels, [0, 2])
    assert f"{tmp_path}: 1 of 3 class folders have no images: dog\n" in capsys.readouterr().out


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Its error is raised by hand: the tests may run as root, who may read all."""
    touch(tmp_path, "a/b/1.jpg")
    original = os.scandir

    def refuse(folder):
        if folder.endswith("/b"):
            raise PermissionError(13, "Permission denied", folder)
        return original(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"^{tmp_path}/a/b cannot be read: Permission denied$"):
        names(tmp_path)

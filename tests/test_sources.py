import io
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import tiny_tfds
from PIL import Image

from gsjax.config import defaults
from gsjax.data import input_pipeline, photos, sources, transforms
from gsjax.errors import UserError


def _data(source, data_dir="", **settings):
    data = defaults.get_config().data
    data.source, data.data_dir = source, str(data_dir)
    data.update(settings)
    return data


def _fails(data, split, *parts, labeled=False):
    """Asserts that opening raises one line that holds the parts."""
    with pytest.raises(UserError) as error:
        sources.open_source(data, split, labeled)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tiny_tfds.write(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_array_record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds_array_record")
    tiny_tfds.write(folder, "array_record")
    return folder


@pytest.fixture(params=["memory", "sequence", "array_record"])
def tiny_data(request):
    kind = request.param
    folder = request.getfixturevalue("tiny_array_record" if kind == "array_record" else "tiny")
    return kind, _data("tiny", folder, memory_gb=0.0 if kind == "sequence" else 4.0)


@pytest.mark.parametrize(
    "split", ["train", "train[3:20]", "test+unlabelled", "unlabelled[1:]+test"]
)
def test_tfds_order_is_that_of_tfds(tiny_data, tiny, split):
    kind, data = tiny_data
    source = sources.open_source(data, split)
    examples = tfds.load("tiny", split=split, data_dir=tiny)
    expected = list(tfds.as_numpy(examples))
    assert source.num_examples == len(expected)
    assert source.class_names == tiny_tfds.CLASSES
    assert bool(source.shards) == (kind == "sequence")
    images = input_pipeline.load_images(source, range(len(expected)))
    for image, example in zip(images, expected, strict=True):
        np.testing.assert_array_equal(image, example["picture"])
    batch = next(input_pipeline.test_batches(source, transforms.central(16), len(expected)))
    np.testing.assert_array_equal(batch["label"], [example["label"] for example in expected])
    if kind == "memory":
        np.testing.assert_array_equal(source.labels, batch["label"])


def test_tfds_pictures_stay_encoded(tiny):
    source = sources.open_source(_data("tiny", tiny), "train")
    picture, label = source.read(tf.constant(7, tf.int64))
    assert picture.numpy().startswith(b"\x89PNG") and label.numpy() == 7 % 3


def test_memory_gb_decides_by_the_size_of_the_files(tiny):
    files = tiny.glob("tiny/1.0.0/*train*")
    size = sum(file.stat().st_size for file in files) / 1e9
    assert not sources.open_source(_data("tiny", tiny, memory_gb=size), "train").shards
    assert sources.open_source(_data("tiny", tiny, memory_gb=0.99 * size), "train").shards


def test_unlabeled_examples_of_a_labeled_split(tiny_data):
    kind, data = tiny_data
    if kind == "memory":
        _fails(data, "test+unlabelled", "unlabeled images", "tiny", labeled=True)
        return
    source = sources.open_source(data, "test+unlabelled", labeled=True)
    with pytest.raises(UserError, match="unlabeled images"):
        list(input_pipeline.test_batches(source, transforms.central(16), 4))


def test_real_layouts(shared_data):
    stl10 = sources.open_source(_data("stl10", shared_data / "standin"), "train+unlabelled")
    assert stl10.num_examples == 1800
    np.testing.assert_array_equal(stl10.labels < 0, np.arange(1800) >= 600)
    imagenette = sources.open_source(
        _data("imagenette/320px-v2", shared_data), "validation", labeled=True
    )
    np.testing.assert_array_equal(np.bincount(imagenette.labels), 10 * [60])
    caltech = sources.open_source(_data("caltech101", shared_data), "train", labeled=True)
    np.testing.assert_array_equal(np.bincount(caltech.labels), 102 * [15])
    assert caltech.class_names[0] == "accordion"


def test_unknown_names_and_splits(tiny):
    _fails(_data("cifar11", tiny), "train", "cifar11", "did you mean cifar10")
    _fails(_data("foldr", tiny), "train", "did you mean folder")
    for split in ("training", "train+tset", "train[:"):
        _fails(_data("tiny", tiny), split, repr(split), "train, test, unlabelled")
    _fails(
        _data("tiny", tiny), "train[:0]", "'train[:0]' selects no images", "train (23), test (5)"
    )


def test_a_data_set_that_is_not_prepared(tmp_path, monkeypatch):
    def fail(builder):
        raise ConnectionError(f"no network for {builder.name}\nsecond line")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    command = f"tfds build cifar100 --data_dir={tmp_path}"
    _fails(_data("cifar100", tmp_path), "train", "no network for cifar100", command)
    _fails(
        _data("imagenet2012", tmp_path),
        "train",
        f"ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar into {tmp_path}/downloads/manual",
        f"tfds build imagenet2012 --data_dir={tmp_path}",
    )
    manual = tmp_path / "downloads/manual"
    manual.mkdir(parents=True)
    (manual / "cars_train.tgz").touch()
    archives = "put cars_test.tgz, car_devkit.tgz, cars_test_annos_withlabels.mat into"
    _fails(_data("cars196", tmp_path), "train", f"{archives} {manual}")


def test_a_data_dir_that_is_not_there(tmp_path):
    for source in ("cifar10", "tiny"):
        wrong = tmp_path / "wrong"
        _fails(_data(source, wrong), "train", f"data_dir {wrong} does not exist", "correct it")
        assert not wrong.exists()


def _only(version, *names):
    for file in version.iterdir():
        if file.name not in names:
            file.unlink()


# What is done to the folder of the version, and what the message says of it.
HALF_DONE = {
    "interrupted": (lambda v: v.rename(v.with_name("incomplete.A1_1.0.0")), "incomplete.A1_1.0.0"),
    "no info": (lambda v: (v / "dataset_info.json").unlink(), "dataset_info.json"),
    "no features": (lambda v: (v / "features.json").unlink(), "unfinished or damaged"),
    "empty info": (lambda v: (v / "dataset_info.json").write_bytes(b""), "Failed to load JSON"),
    "cut info": (
        lambda v: (v / "dataset_info.json").write_bytes(
            (v / "dataset_info.json").read_bytes()[:200]
        ),
        "Failed to load JSON",
    ),
    "cut features": (
        lambda v: (v / "features.json").write_bytes((v / "features.json").read_bytes()[:100]),
        "JSONDecodeError",
    ),
    "files alone": (lambda v: _only(v, "tiny-test.tfrecord-00000-of-00003"), "unfinished"),
}


@pytest.mark.parametrize("name", HALF_DONE)
def test_a_half_done_preparation_of_an_own_data_set(tiny, tmp_path, name):
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    damage, part = HALF_DONE[name]
    damage(tmp_path / "tiny/1.0.0")
    (version,) = (tmp_path / "tiny").iterdir()
    command = f"tfds build tiny --data_dir={tmp_path}"
    _fails(_data("tiny", tmp_path), "train", part, f"delete {version}, then", command)


@pytest.mark.parametrize("file", ["", "features.json", "cifar10-train.tfrecord-00000-of-00001"])
def test_a_half_done_preparation_of_a_known_data_set(tmp_path, file):
    """TFDS would take such a folder for the prepared set, and fail later."""
    version = tmp_path / "cifar10/3.0.2"
    version.mkdir(parents=True)
    if file:
        (version / file).write_text("{}")
    _fails(_data("cifar10", tmp_path), "train", "unfinished", f"delete {version}, then rerun")


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_a_damaged_file_of_a_prepared_data_set(request, tmp_path, kind, damage):
    whole = request.getfixturevalue("tiny" if kind == "tfrecord" else "tiny_array_record")
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    version = tmp_path / "tiny/1.0.0"
    path = version / f"tiny-train.{kind}-00001-of-00003"
    content = path.read_bytes()
    path.write_bytes(content[:-100] if damage == "cut" else b"")
    if damage == "missing":
        path.unlink()
    message = f"{path} is missing or damaged", f"delete {version} and rerun"
    _fails(_data("tiny", tmp_path), "train", *message)
    assert sources.open_source(_data("tiny", tmp_path), "test").num_examples == 5


@pytest.mark.parametrize("kind", ["few", "slice"])
def test_fewer_pictures_than_a_batch(tiny, tmp_path, kind):
    config = defaults.get_config()
    config.batch_size = 4
    _write_pictures(tmp_path, "1.png", "2.png", "3.png")
    config.data = _data("folder", tmp_path) if kind == "few" else _data("tiny", tiny)
    split = "" if kind == "few" else "train[:3]"
    source = sources.open_source(config.data, split)
    with pytest.raises(UserError, match="batch_size=4 is more than the 3 images .*at most 3"):
        input_pipeline.train_batches(source, config, 0, 1)


def _write_pictures(root, *names):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {"jpg": "JPEG", "jpeg": "JPEG"}.get(path.suffix[1:].lower(), path.suffix[1:])
        Image.new("RGB", (9, 7), (20 * number, 0, 0)).save(path, kind)


def _names(source):
    return [os.path.relpath(source.image_name(i), source.name) for i in range(source.num_examples)]


def test_folder_takes_every_picture_at_any_depth(tmp_path):
    _write_pictures(tmp_path, "train/b/c/2.PNG", "train/a.jpg", "train/b/1.JPEG", "train/z.webp")
    _write_pictures(tmp_path, "train/b/c/d/x.bmp", "train/.hidden/1.png", "train/.2.png")
    _write_pictures(tmp_path, "train/__MACOSX/3.png", "other/4.png")
    (tmp_path / "train/notes.txt").write_text("no picture")
    source = sources.open_source(_data("folder", tmp_path), "train")
    assert _names(source) == ["a.jpg", "b/1.JPEG", "b/c/2.PNG", "b/c/d/x.bmp", "z.webp"]
    assert source.class_names is None
    np.testing.assert_array_equal(source.labels, 5 * [-1])
    whole = sources.open_source(_data("folder", tmp_path), "")
    assert _names(whole)[0] == "other/4.png" and whole.num_examples == 6


def test_folder_follows_links(tmp_path):
    _write_pictures(tmp_path / "elsewhere", "cat/1.png")
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/cat").symlink_to(tmp_path / "elsewhere/cat")
    source = sources.open_source(_data("folder", tmp_path / "data"), "train", labeled=True)
    assert _names(source) == ["cat/1.png"]


def test_folder_leaves_out_what_would_never_end(tmp_path):
    """Links to a folder above and to themselves, and pipes; a link to nowhere is a picture lost."""
    _write_pictures(tmp_path, "train/b/1.png")
    (tmp_path / "train/b/up").symlink_to(tmp_path / "train")
    (tmp_path / "train/b/round.png").symlink_to("round.png")
    (tmp_path / "train/lost.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "train/pipe.png")
    (tmp_path / "train/linked.png").symlink_to("pipe.png")
    source = sources.open_source(_data("folder", tmp_path), "train")
    assert _names(source) == ["b/1.png", "b/round.png", "lost.png"]


def test_folder_classes_are_its_sorted_sub_folders(tmp_path):
    _write_pictures(
        tmp_path, "val/owl/1.png", "val/cat/deep/2.png", "val/cat/3.png", "val/.x/4.png"
    )
    source = sources.open_source(_data("folder", tmp_path), "val", labeled=True)
    assert source.class_names == ("cat", "owl")
    assert _names(source) == ["cat/3.png", "cat/deep/2.png", "owl/1.png"]
    np.testing.assert_array_equal(source.labels, [0, 0, 1])
    batch = next(input_pipeline.test_batches(source, transforms.central(8), 3))
    np.testing.assert_array_equal(batch["label"], [0, 0, 1])
    # Numbered in the order of writing by their red value.
    reds = [image[0, 0, 0] for image in input_pipeline.load_images(source, range(3))]
    np.testing.assert_array_equal(reds, [40, 20, 0])


def test_folder_mistakes(tmp_path):
    _fails(_data("folder"), "train", "data_dir")
    _fails(_data("folder", tmp_path), "train", f"{tmp_path}/train", "not a folder")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/notes.txt").write_text("no picture")
    _fails(_data("folder", tmp_path), "train", f"{tmp_path}/train contains no images", ".webp")
    _write_pictures(tmp_path, "train/cat/1.png", "train/2.png")
    _fails(_data("folder", tmp_path), "train", "2.png is not in a class folder", labeled=True)


def test_photos_are_ten_real_photographs():
    train = sources.open_source(_data("photos"), "train", labeled=True)
    test = sources.open_source(_data("photos"), "test", labeled=True)
    np.testing.assert_array_equal(np.bincount(train.labels), 10 * [500])
    np.testing.assert_array_equal(np.bincount(test.labels), 10 * [200])
    assert len(set(train.class_names)) == 10 and "astronaut" in train.class_names
    tiles = np.stack(input_pipeline.load_images(train, range(0, 5000, 25)))
    assert tiles.shape == (200, 32, 32, 3) and tiles.dtype == np.uint8
    assert len(np.unique(tiles.reshape(200, -1), axis=0)) > 190
    # Color, unlike gray-scale photographs: the channels differ.
    by_photo = tiles.reshape(10, -1, 3).astype(float)
    assert (np.abs(by_photo[..., 0] - by_photo[..., 2]).mean(axis=1) > 3).all()


@pytest.mark.parametrize("size", [16, 32, 96, 224])
def test_photos_train_and_test_share_no_pixel(monkeypatch, size):
    """Photographs whose pixels carry their own position show which pixels a split uses."""
    shapes = [(512, 512), (300, 451), (400, 600), (558, 640), (427, 640)]

    def positions(package, file):
        height, width = shapes[len(file) % len(shapes)]
        number = np.arange(height * width).reshape(height, width)
        return np.stack([number >> 16, number >> 8 & 255, number & 255], -1).astype(np.uint8)

    monkeypatch.setattr(photos, "_load", positions)
    monkeypatch.setattr(photos, "_TILES", {"train": 30, "test": 20})
    used = {}
    for split in ("train", "test"):
        tiles, labels = photos.tiles(split, size)
        numbers = tiles.astype(int) @ [1 << 16, 1 << 8, 1]
        assert (np.diff(numbers, axis=2) == 1).all(), "a tile is contiguous"
        used[split] = np.zeros([10, 640 * 640], bool)
        np.put_along_axis(used[split], numbers.reshape(10, -1), True, axis=1)
        assert used[split].any(axis=1).all()
    assert not (used["train"] & used["test"]).any()


def test_photos_are_the_same_each_time():
    first, labels = photos.tiles("train", 32)
    again, _ = photos.tiles("train", 32)
    np.testing.assert_array_equal(first, again)
    rocket = photos.names().index("rocket")
    assert (first[labels == rocket].mean() < first.mean()) and first.std() > 40


def test_whole_photographs_hold_their_tiles():
    whole = photos.photographs()
    assert tuple(whole) == photos.names()
    tiles, labels = photos.tiles("test", 64)
    for label, photo in enumerate(whole.values()):
        assert photo.dtype == np.uint8 and max(photo.shape[:2]) <= 640
        tile = tiles[labels == label][0]
        places = np.argwhere((photo[:-63, :-63] == tile[0, 0]).all(axis=-1))
        assert any((photo[y : y + 64, x : x + 64] == tile).all() for y, x in places)


def test_photos_mistakes(monkeypatch):
    _fails(_data("photos"), "validation", "'validation'", "train, test")
    _fails(_data("photos", image_size=300), "train", "image_size=300", "224")
    photos._load.cache_clear()
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    _fails(_data("photos"), "train", "install scikit-image and scikit-learn")


def test_opening_reads_no_picture(tmp_path):
    """Only names are listed: a file that is no picture is told when it is read."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train/broken.jpg").write_bytes(io.BytesIO(b"no picture").getvalue())
    assert sources.open_source(_data("folder", tmp_path), "train").num_examples == 1

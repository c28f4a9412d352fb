"""Damaged pictures and files in training: what takes their place, what is said, what stops."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tensorflow as tf
import tiny_tfds
from PIL import Image

from gsjax.config import defaults
from gsjax.crops import Crops
from gsjax.data import crops, input_pipeline, sources, transforms
from gsjax.errors import UserError

DAMAGED = (3, 7, 20)  # of the 23 pictures
STEPS = 12  # more than two epochs of five steps


def _open(kind, folder):
    config = defaults.get_config()
    config.batch_size, config.data.max_damaged = 4, 0.5
    config.data.source = "folder" if kind == "folder" else "tiny"
    config.data.data_dir = str(folder)
    config.data.memory_gb = 0.0 if kind == "sequence" else 4.0
    return config, sources.open_source(config.data, "" if kind == "folder" else "train")


def _damage_records(folder):
    """Cuts the pictures of some records; the files themselves stay sound."""
    number = 0
    for path in sorted(folder.glob("tiny/1.0.0/tiny-train*")):
        records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                example = tf.train.Example.FromString(record)
                if number in DAMAGED:
                    picture = example.features.feature["picture"].bytes_list
                    picture.value[0] = b"" if number == 7 else picture.value[0][:60]
                writer.write(example.SerializeToString())
                number += 1


def _damage_files(folder):
    cut, empty, missing = (folder / f"{i:02}.png" for i in DAMAGED)
    cut.write_bytes(cut.read_bytes()[:60])
    empty.write_bytes(b"")
    missing.unlink()


# Both "memory" and "folder" read at random, with the same code for damage.
@pytest.fixture(params=[pytest.param("memory", marks=pytest.mark.slow), "sequence", "folder"])
def case(request, tmp_path):
    """A source with three damaged pictures, and its batches from before they were damaged."""
    kind = request.param
    if kind == "folder":
        for i, image in enumerate(tiny_tfds.pictures("train")):
            Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    else:
        tiny_tfds.write(tmp_path, num_shards=4)
    config, source = _open(kind, tmp_path)
    sound = _train(config, source, 0, STEPS)
    if kind == "folder":
        _damage_files(tmp_path)  # the source is open already: one is missing from it now
    else:
        _damage_records(tmp_path)
        config, source = _open(kind, tmp_path)
    return config, source, sound


def _train(config, source, start, stop, *host, **settings):
    return list(input_pipeline.train_batches(source, config, start, stop, *host, **settings))


def _assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        jax.tree.map(np.testing.assert_array_equal, batch, other)


def _substitute(seed, position):
    """The first sound picture of those that are drawn from (seed, position)."""
    generator = np.random.default_rng([seed, position, 1])
    while (index := int(generator.integers(23))) in DAMAGED:
        pass
    return index


def test_another_picture_takes_the_place(case):
    """Sound rows stay bit by bit; the others are crops, drawn for their place, of another."""
    config, source, sound = case
    replaced = 0
    for step, (batch, before) in enumerate(zip(_train(*case[:2], 0, STEPS), sound, strict=True)):
        is_damaged = np.isin(before["index"], DAMAGED)
        for column, other in zip(jax.tree.leaves(batch), jax.tree.leaves(before), strict=True):
            assert (column.shape, column.dtype) == (other.shape, other.dtype)
            np.testing.assert_array_equal(column[~is_damaged], other[~is_damaged])
        for place in np.flatnonzero(is_damaged):
            index = _substitute(config.seed, 4 * step + place)
            assert batch["index"][place] == index
            (picture,) = input_pipeline.load_images(source, [index])
            seed = tf.constant([config.seed, 4 * step + place], tf.int64)
            boxes = crops.random_resized_crop_boxes(seed, picture.shape[:2], config.augment)
            np.testing.assert_array_equal(batch["global"].boxes[place], boxes)
            for view, box in zip(batch["global"].images[place], boxes, strict=True):
                np.testing.assert_array_equal(view, crops.crop_and_resize(picture, box, 32))
            np.testing.assert_array_equal(batch["size"][place], picture.shape[:2])
            assert batch["label"][place] == (index % 3 if config.data.source == "tiny" else -1)
            replaced += 1
    assert replaced >= 5


def test_a_resume_and_more_hosts_change_nothing(case):
    config, source, _ = case
    whole = _train(config, source, 0, STEPS)
    for start in (4, 7):
        _assert_equal(_train(config, source, start, STEPS), whole[start:])
    _assert_equal(
        [{**b, "global": Crops(*(part[:, :1] for part in b["global"]))} for b in whole],
        _train(config, source, 0, STEPS, num_views=1),
    )
    if not source.shards:
        parts = [_train(config, source, 0, STEPS, host, 4) for host in range(4)]
        joined = [
            jax.tree.map(lambda *columns: np.concatenate(columns), *batches)
            for batches in zip(*parts, strict=True)
        ]
        _assert_equal(joined, whole)


def test_each_is_named_once(case, capfd):
    config, source, _ = case
    _train(config, source, 0, STEPS)
    lines = [line for line in capfd.readouterr().err.splitlines() if "damaged" in line]
    for number, line in enumerate(lines, 1):
        assert f" instead ({number} of 23 images so far)" in line
    for index in DAMAGED:
        name = f"damaged  {source.image_name(index)} cannot be decoded: "
        assert sum(name in line for line in lines) == 1
    assert len(lines) == len(DAMAGED)


def test_training_stops_above_the_share(case):
    config, source, _ = case
    config.data.max_damaged = 3 / 23
    assert len(_train(config, source, 0, STEPS)) == STEPS
    config.data.max_damaged = 2.99 / 23
    with pytest.raises(UserError) as error:
        _train(config, source, 0, STEPS)
    message = str(error.value)
    assert "3 of the 23 images" in message and "(13.04%)" in message
    assert "--config.data.max_damaged" in message and "fix or remove them" in message
    assert all(source.image_name(index) in message for index in DAMAGED)


def test_features_leave_them_out(case):
    _, source, _ = case
    for batch_size in (1, 4, 23):
        batches = _test(source, batch_size)
        assert len(batches) == -(-23 // batch_size)
        index = np.concatenate([batch["index"] for batch in batches])
        expected = [i for i in range(23) if i not in DAMAGED]
        np.testing.assert_array_equal(index[index >= 0], expected)


def test_nothing_but_damaged_pictures_ends(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(b"")
    config, source = _open("folder", tmp_path)
    config.data.max_damaged = 1.0
    with pytest.raises(UserError, match="6 of the 6 images.* and 1 more"):
        _train(config, source, 0, 1)


@pytest.fixture
def sound_folder(tmp_path):
    for i, image in enumerate(tiny_tfds.pictures("train")):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    return _open("folder", tmp_path)


def _failing(source, error, times):
    """Lets the first readings of number 5 fail."""
    read, failed = source.read, []

    def fail(index):
        if index == 5 and len(failed) < times:
            failed.append(index)
            raise error
        return index

    def flaky(index):
        return read(tf.ensure_shape(tf.numpy_function(fail, [index], tf.int64), []))

    object.__setattr__(source, "read", flaky)
    return failed


def test_storage_that_fails_for_a_moment_changes_nothing(sound_folder, capfd):
    config, source = sound_folder
    sound = _train(config, source, 0, STEPS)
    failed = _failing(source, OSError("try again"), times=1)
    _assert_equal(_train(config, source, 0, STEPS), sound)
    assert failed == [5]
    assert "damaged" not in capfd.readouterr().err


def _test(source, batch_size):
    return list(input_pipeline.test_batches(source, transforms.central(16), batch_size))


@pytest.mark.parametrize("size", [1, 4, 23])
def test_storage_that_fails_for_a_moment_costs_an_evaluation_no_picture(sound_folder, size):
    _, source = sound_folder
    sound = _test(source, size)
    failed = _failing(source, OSError("try again"), times=1)
    _assert_equal(_test(source, size), sound)
    assert failed == [5]


def test_what_pillow_alone_decodes_is_not_damaged(sound_folder, capfd):
    """A PNG file with a broken checksum of its pixels, which TensorFlow refuses."""
    config, source = sound_folder
    sound, tested = _train(config, source, 0, STEPS), _test(source, 4)
    path = pathlib.Path(source.paths[5])
    content = bytearray(path.read_bytes())
    end = content.index(b"IDAT") + 4 + int.from_bytes(content[content.index(b"IDAT") - 4 :][:4])
    content[end] ^= 1
    path.write_bytes(content)
    with pytest.raises(tf.errors.OpError):
        tf.io.decode_png(bytes(content))
    _assert_equal(_train(config, source, 0, STEPS), sound)
    _assert_equal(_test(source, 4), tested)
    (image,) = input_pipeline.load_images(source, [5])
    np.testing.assert_array_equal(image, np.asarray(Image.open(path)))
    assert "damaged" not in capfd.readouterr().err


@pytest.mark.parametrize("shape", [(1, 30_000, 3), (30_000, 1, 3)])
def test_long_pictures_are_not_damaged(sound_folder, capfd, shape):
    """169 bytes of PNG, of which an evaluation would make 16 GB."""
    config, source = sound_folder
    pixels = np.full(shape, [9, 99, 200], np.uint8)
    Image.fromarray(pixels).save(source.paths[5])
    for size in (16, 224):
        (batch,) = input_pipeline.test_batches(source, transforms.central(size), 23)
        np.testing.assert_array_equal(batch["index"], np.arange(23))
        expected = np.broadcast_to(pixels[0, 0], (size, size, 3))
        np.testing.assert_array_equal(batch["image"][5], expected)
    for law in ("torchvision", "tf", "byol"):
        config.augment.crop, config.data.image_size = law, 224
        batches = _train(config, source, 0, STEPS)
        for batch in batches:
            for views in batch["global"].images[batch["index"] == 5]:
                np.testing.assert_array_equal(views, np.broadcast_to(pixels[0, 0], views.shape))
        assert any((batch["index"] == 5).any() for batch in batches)
    assert "damaged" not in capfd.readouterr().err


def test_what_is_not_the_pictures_fault_is_not_taken_for_damage(sound_folder):
    config, source = sound_folder
    _failing(source, MemoryError("none left"), times=99)
    told = r"05.png.* may be intact \(MemoryError: none"
    with pytest.raises(UserError, match=told):
        _train(config, source, 0, STEPS)
    with pytest.raises(UserError, match=told):
        _test(source, 4)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def _cut_between_records(path):
    first, *_ = tf.data.TFRecordDataset(str(path))
    path.write_bytes(path.read_bytes()[: len(first.numpy()) + 16])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("when", ["in memory", "training", "features"])
@pytest.mark.parametrize("damage", [_cut, _cut_between_records, _flip, lambda path: path.unlink()])
def test_a_damaged_file_of_the_data_set_is_named(tmp_path, damage, when):
    """It is no damaged picture: a part of the data set is not there."""
    tiny_tfds.write(tmp_path, num_shards=3)
    config, source = _open("sequence", tmp_path)
    folder = tmp_path / "tiny/1.0.0"
    path = folder / "tiny-train.tfrecord-00001-of-00003"
    damage(path)
    with pytest.raises(UserError) as error:
        if when == "in memory":
            _open("memory", tmp_path)
        elif when == "training":
            _train(config, source, 0, STEPS)
        else:
            _test(source, 4)
    message = str(error.value)
    assert message.startswith(f"{path} is missing or damaged (")
    assert f"delete {folder} and rerun" in message
    assert "\n" not in message and "{{" not in message and "[Op:" not in message


ONE_LINE = """
import jax  # which sets TensorFlow's variable, too
import sys
from gsjax.config import settings
from gsjax.data import input_pipeline, sources

config = settings.load(None)
changes = {"data.source": "folder", "data.data_dir": sys.argv[1], "data.max_damaged": "0.5"}
settings.override(config, changes | {"batch_size": "4", "data.image_size": "16"})
list(input_pipeline.train_batches(sources.open_source(config.data, ""), config, 0, 2))
"""


def test_a_damaged_picture_is_one_line_whatever_the_libraries_say(tmp_path):
    for i, image in enumerate(tiny_tfds.pictures("train")[:8]):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    (tmp_path / "03.png").write_bytes(b"nothing")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    done = subprocess.run(
        [sys.executable, "-c", ONE_LINE, str(tmp_path)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert line.startswith("damaged") and "03.png" in line

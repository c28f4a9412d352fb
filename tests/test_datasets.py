"""The data sets of transfer learning: their table and their readers."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from gsjax.config import defaults
from gsjax.data import classes, input_pipeline, photos, transforms
from gsjax.data.source import check_one_label, from_files
from gsjax.errors import UserError
from gsjax.evaluate import datasets, scores

DATA = defaults.get_config().data


def open_dataset(name, data, data_dir):
    dataset, where = datasets.find_dataset(name, data, data_dir)
    return datasets.open_dataset(dataset, data, where)


def write_aircraft(root):
    """A small copy of the official archive's layout."""
    folder = root / "fgvc-aircraft-2013b/data"
    (folder / "images").mkdir(parents=True)
    (folder / "variants.txt").write_text("707-320\n727-200\nA330-200\nF/A-18\n")
    splits = {
        "train": [("0034309", "707-320"), ("1025794", "F/A-18")],
        "val": [("1340192", "A330-200")],
        "test": [("0056978", "727-200"), ("1514522", "707-320"), ("0900001", "F/A-18")],
    }
    for split, rows in splits.items():
        text = "".join(f"{name} {variant}\n" for name, variant in rows)
        (folder / f"images_variant_{split}.txt").write_text(text)
        for number, (name, _) in enumerate(rows):
            Image.new("RGB", (30, 20), (60 * number, 0, 0)).save(folder / f"images/{name}.jpg")
    return folder


def test_aircraft(tmp_path):
    folder = write_aircraft(tmp_path)
    dataset, opened = open_dataset("aircraft", DATA, str(tmp_path))
    assert dataset.metric == "mean_per_class"
    assert {role: source.num_examples for role, source in opened.items()} == {
        "train": 2, "validation": 1, "test": 3
    }  # fmt: skip
    assert opened["test"].class_names == ("707-320", "727-200", "A330-200", "F/A-18")
    np.testing.assert_array_equal(opened["test"].labels, [1, 0, 3])
    (batch,) = input_pipeline.test_batches(opened["test"], transforms.Stretched(8), 3)
    np.testing.assert_allclose(batch["image"][:, 0, 0, 0], [0, 60, 120], atol=3)
    (folder / "images/1514522.jpg").unlink()
    with pytest.raises(UserError, match=r"1 missing images, such as .*1514522.jpg"):
        open_dataset("aircraft", DATA, str(tmp_path))
    (folder / "images").rename(folder / "pictures")
    with pytest.raises(UserError, match="data/images is missing"):
        open_dataset("aircraft", DATA, str(tmp_path))
    (folder / "pictures").rename(folder / "images")
    (folder / "variants.txt").write_text("707-320\n")
    with pytest.raises(UserError, match="is not an image and a variant"):
        open_dataset("aircraft", DATA, str(tmp_path))
    with pytest.raises(UserError, match="unpack fgvc-aircraft-2013b.tar.gz"):
        open_dataset("aircraft", DATA, str(tmp_path / "nowhere"))


def test_table_agrees_with_tfds():
    """Each TFDS name is known there, with one label a picture or, for VOC, several."""
    for name, dataset in datasets.DATASETS.items():
        if name == "aircraft":
            continue
        features = tfds.builder(dataset.source).info.features
        if dataset.metric == "map11":
            assert features["labels"].feature.num_classes == 20
        else:
            assert features["label"].num_classes in (10, 37, 47, 100, 101, 102, 196), name


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
def test_voc_labels(tmp_path, memory_gb):
    """Present, difficult and absent objects, in memory and read in sequence."""
    names = ["aeroplane", "bicycle", "bird"]
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
            "labels_no_difficult": tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
        }
    )
    labels = [([0, 2], [0]), ([1], [1]), ([2, 1], [])]

    def examples():
        for i, (every, clear) in enumerate(labels):
            image = np.full((9, 9, 3), 50 * i, np.uint8)
            yield {"image": image, "labels": every, "labels_no_difficult": clear}

    import tensorflow as tf

    signature = {
        "image": tf.TensorSpec([None, None, 3], tf.uint8),
        "labels": tf.TensorSpec([None], tf.int64),
        "labels_no_difficult": tf.TensorSpec([None], tf.int64),
    }
    split = tf.data.Dataset.from_generator(examples, output_signature=signature)
    tfds.dataset_builders.store_as_tfds_dataset(
        name="objects", version="1.0.0", features=features, data_dir=tmp_path,
        split_datasets={"train": split, "test": split}, disable_shuffling=True,
    )  # fmt: skip
    data = DATA.copy_and_resolve_references()
    data.memory_gb = memory_gb
    dataset, opened = open_dataset("objects", data, str(tmp_path))
    assert dataset.metric == "map11"
    source = opened["test"]
    with pytest.raises(UserError, match="several labels per image"):
        check_one_label(source)
    assert bool(source.shards) == (memory_gb == 0)
    assert source.class_names == tuple(names)
    (batch,) = input_pipeline.test_batches(source, transforms.Stretched(8), 4)
    expected = np.array([[1, -1, 0], [-1, 1, -1], [-1, 0, 0]])
    np.testing.assert_array_equal(batch["label"][:3], expected)
    assert scores.eleven_point_map(expected.astype(float), expected) == 100


def write_classes(root, *splits, classes=("cat", "owl")):
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            Image.fromarray(photos.tiles("test", 16)[0][0]).save(root / split / name / "1.png")


def test_a_folder_stands_in_for_any_data_set(tmp_path):
    write_classes(tmp_path / "pets", "train", "val", "test")
    dataset, opened = open_dataset("pets", DATA, str(tmp_path))
    assert (dataset.metric, dataset.validation) == ("mean_per_class", "val")
    assert opened["train"].class_names == ("cat", "owl")
    write_classes(tmp_path / "own", "train", "test")
    dataset, opened = open_dataset("own", DATA, str(tmp_path))
    assert (dataset.metric, dataset.validation) == ("top1", "")
    assert set(opened) == {"train", "test"}


def test_splits_with_other_classes_are_refused(tmp_path):
    write_classes(tmp_path / "own", "train")
    write_classes(tmp_path / "own", "test", classes=("cat", "dog"))
    with pytest.raises(UserError) as error:
        open_dataset("own", DATA, str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path}/own/train and {tmp_path}/own/test have different classes: 2 and 2 of them; "
        "only the first has 'owl'; only the second has 'dog'"
    )


ONLY = "differ only in"
FORMS = f"{ONLY} Unicode normalization (NFC, NFD)"
DIFFERENCES = [
    ("a b", "a b", ""),
    (
        "b a c",
        "b c a",
        "in a different order: number 1 is 'a' in the first and 'c' in the sec",
    ),
    ("a", None, "only the first has class names"),
    (None, "a", "only the second has class names"),
    ("a b", "a", "2 and 1 of them; only the first has 'b'"),
    ("a", "a b c d e f g h", "8 of them; only the second has 'b', 'c', 'd', 'e', 'f' and 2 more"),
    ("Cat", "cat", f"'Cat' and 'cat' {ONLY} case: rename one"),
    ("a-b", "a--b-", f"'a b' and 'a  b ' {ONLY} spaces: rename one"),
    ("caf\u00e9", "cafe\u0301", f"{FORMS}: rename one"),
    ("Caf\u00e9-", "cafe\u0301", f"{FORMS} and spaces and case: rename one"),
    ("A B C", "a b D", f"'A' and 'a' {ONLY} case, and 1 more such pairs: rename one"),
]


@pytest.mark.parametrize(("first", "second", "message"), DIFFERENCES)
def test_how_classes_differ(first, second, message):
    names = (t and tuple(n.replace("-", " ") for n in t.split()) for t in (first, second))
    difference = classes.difference(*names)
    assert message in difference if message else difference == ""
    assert len(message.splitlines()) <= 1


def test_a_folder_with_one_split_is_not_taken_for_a_tfds_set(tmp_path):
    write_classes(tmp_path / "own", "train")
    with pytest.raises(UserError, match="own has only train/; it needs both train/ and test/"):
        open_dataset("own", DATA, str(tmp_path))
    write_classes(tmp_path / "pictures", "training")
    with pytest.raises(UserError, match="a TFDS data set") as error:
        open_dataset("pictures", DATA, str(tmp_path))
    assert "delete" not in str(error.value)


def test_real_sets(shared_data):
    for name, numbers in {
        "caltech101": {"train": 1530, "test": 497},
        "imagenette": {"train": 2600, "test": 600},
    }.items():
        _, opened = open_dataset(name, DATA, str(shared_data))
        assert {role: source.num_examples for role, source in opened.items()} == numbers


def test_a_tfds_set_outside_of_the_table(shared_data):
    dataset, _ = datasets.find_dataset("imagenette/320px-v2", DATA, str(shared_data))
    assert (dataset.validation, dataset.test) == ("", "validation")
    dataset, _ = datasets.find_dataset("stl10", DATA, str(shared_data / "standin"))
    assert (dataset.validation, dataset.test) == ("", "test")
    with pytest.raises(UserError, match="a TFDS data set"):
        datasets.find_dataset("nowhere", DATA, str(shared_data))


def test_names():
    assert datasets.parse_names("pets, cars,") == ["pets", "cars"]
    for text in ("", " , ", "pets,pets"):
        with pytest.raises(UserError, match="is not a comma-separated list of distinct data sets"):
            datasets.parse_names(text)


def test_fixed_random_parts():
    assert datasets.random_subset(10, 0) is None and datasets.random_subset(10, 10) is None
    part = datasets.random_subset(1000, 100)
    assert len(np.unique(part)) == 100 and (np.diff(part) > 0).all()
    np.testing.assert_array_equal(part, datasets.random_subset(1000, 100))
    train, validation = datasets.split_validation(101)
    assert len(validation) == 20
    np.testing.assert_array_equal(np.sort([*train, *validation]), np.arange(101))
    assert abs(np.corrcoef(validation, np.arange(20))[0, 1]) < 1.0  # not the first twenty
    assert validation.max() > 60


def test_a_labeled_source_of_files(tmp_path):
    write_classes(tmp_path, "train")
    paths = sorted(map(str, tmp_path.rglob("*.png")))
    source = from_files("two", "two", paths, np.array([1, 0]), ("a", "b"))
    before = source.files()
    (tmp_path / "train/cat/1.png").write_bytes(b"other")
    assert source.files() != before

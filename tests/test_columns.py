"""Which features of a TFDS data set are its picture and its label, on small sets of TFDS itself."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_tfds

from gsjax.config import defaults
from gsjax.data import input_pipeline, sources, transforms
from gsjax.errors import UserError

Image, ClassLabel, Text = tfds.features.Image, tfds.features.ClassLabel, tfds.features.Text
Sequence, FeaturesDict = tfds.features.Sequence, tfds.features.FeaturesDict

RGB = Image(shape=(None, None, 3), encoding_format="png")
MASK = Image(shape=(None, None, 1), encoding_format="png")
NAMES = ["cat", "dog", "owl"]
LABELS = [2, 0, 1, 2]


def picture(number, dtype=np.uint8, channels=3):
    shade = 40 * number if dtype == np.uint8 else 257 * 40 * number
    return np.full((6, 5, channels), shade, dtype)


def mask(number):
    return np.full((6, 5, 1), 255, np.uint8)


def opened(folder, labeled=True, **settings):
    data = defaults.get_config().data
    data.source, data.data_dir = "tiny", str(folder)
    data.update(settings)
    return sources.open_source(data, "train", labeled)


def write(folder, columns, supervised_keys=None, file_format="tfrecord"):
    """Writes a set of {name: (feature, its values)}."""
    examples = [
        {name: values[i] for name, (_, values) in columns.items()} for i in range(len(LABELS))
    ]
    features = {name: feature for name, (feature, _) in columns.items()}
    tiny_tfds.write_features(folder, features, examples, supervised_keys, file_format)


def shades(source):
    """Shade of each picture, and its label, as evaluations read them."""
    (batch,) = input_pipeline.test_batches(source, transforms.Stretched(4), len(LABELS))
    np.testing.assert_array_equal(batch["index"], range(len(LABELS)))
    return batch["image"].mean(axis=(1, 2, 3)).tolist(), batch["label"].tolist()


SHADES = [0.0, 40.0, 80.0, 120.0]
PICTURES = [picture(i) for i in range(4)]
MASKS = [mask(i) for i in range(4)]
A_PICTURE, A_MASK, A_LABEL = (RGB, PICTURES), (MASK, MASKS), (ClassLabel(names=NAMES), LABELS)

# What is in the set, its supervised_keys, and the features that are to be taken.
CHOICES = {
    "first a mask, image by supervised_keys": (
        {"a_mask": A_MASK, "photo": A_PICTURE, "kind": A_LABEL},
        ("photo", "kind"),
    ),
    "first a mask, image by its name": ({"a_mask": A_MASK, "image": A_PICTURE, "label": A_LABEL},),
    "supervised_keys before the name": (
        {"image": A_MASK, "photo": A_PICTURE, "label": A_LABEL},
        ("photo", "label"),
    ),
    "a LabeledImage is a mask": (
        {
            "a_mask": (
                tfds.features.LabeledImage(shape=(None, None, 1), labels=3, encoding_format="png"),
                MASKS,
            ),
            "photo": A_PICTURE,
            "label": A_LABEL,
        },
    ),
    "three supervised_keys": (
        {"a_mask": A_MASK, "photo": A_PICTURE, "kind": A_LABEL, "weight": (np.float32, [1.0] * 4)},
        ("photo", "kind", "weight"),
    ),
    "nested supervised_keys": (
        {"a_mask": A_MASK, "photo": A_PICTURE, "kind": A_LABEL, "name": (Text(), ["x"] * 4)},
        ({"x": "photo", "n": "name"}, ("kind", "a_mask")),
    ),
    "supervised_keys of another kind": (
        {"a_mask": A_MASK, "image": A_PICTURE, "label": A_LABEL, "name": (Text(), ["x"] * 4)},
        ("name", "a_mask"),
    ),
    "nested": (
        {
            "inputs": (
                FeaturesDict({"photo": RGB, "label": ClassLabel(names=NAMES)}),
                [{"photo": PICTURES[i], "label": LABELS[i]} for i in range(4)],
            )
        },
    ),
    "a label of small whole numbers": ({"image": A_PICTURE, "label": (np.uint8, LABELS)},),
}


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("kind", CHOICES)
def test_the_picture_and_the_label(tmp_path, kind, file_format):
    columns, *supervised_keys = CHOICES[kind]
    write(tmp_path, columns, *supervised_keys, file_format=file_format)
    source = opened(tmp_path)
    assert shades(source) == (SHADES, LABELS)
    numbers = "small whole numbers" in kind
    assert source.class_names == (None if numbers else tuple(NAMES))
    if file_format == "tfrecord":
        assert shades(opened(tmp_path, memory_gb=0.0)) == (SHADES, LABELS)


NO_LABELS = {
    "text": (Text(), ["a", "b", "c", "d"]),
    "float32": (np.float32, [0.5, 1.5, 2.5, 3.5]),
    "float64": (tfds.features.Scalar(np.float64), [0.5, 1.5, 2.5, 3.5]),
    "a vector": (tfds.features.Tensor(shape=(2,), dtype=np.int64), [[1, 2]] * 4),
    "encoded bytes": (
        tfds.features.Tensor(shape=(), dtype=np.int64, encoding="zlib"),
        [np.int64(1)] * 4,
    ),
    "a dict": (FeaturesDict({"a": np.int64}), [{"a": 1}] * 4),
    "a sequence of texts": (Sequence(Text()), [["a"]] * 4),
    "a sequence of dicts": (Sequence({"a": np.int64}), [[{"a": 1}]] * 4),
    "a picture": A_MASK,
}


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
@pytest.mark.parametrize("kind", NO_LABELS)
def test_other_labels_are_none(tmp_path, kind, memory_gb):
    write(tmp_path, {"image": A_PICTURE, "label": NO_LABELS[kind]}, ("image", "label"))
    source = opened(tmp_path, labeled=False, memory_gb=memory_gb)
    assert shades(source) == (SHADES, [-1] * 4)
    with pytest.raises(UserError, match="^tiny has no labels, which a labeled split needs") as e:
        opened(tmp_path, memory_gb=memory_gb)
    assert "\n" not in str(e.value)
    assert ("its feature label is not a class label" in str(e.value)) == (kind != "a dict")
    data = defaults.get_config().data  # as for the kNN of a training on the same split
    data.source, data.data_dir = "tiny", str(tmp_path)
    with pytest.raises(UserError, match="^tiny has no labels, which a labeled split needs"):
        sources.open_labeled(data, train=source)


def test_labels_that_are_truth_values(tmp_path):
    write(tmp_path, {"image": A_PICTURE, "label": (np.bool_, [True, False, False, True])})
    assert shades(opened(tmp_path)) == (SHADES, [1, 0, 0, 1])


def test_another_label_where_the_one_named_label_is_text(tmp_path):
    columns = {"image": A_PICTURE, "label": (Text(), ["x"] * 4), "species": A_LABEL}
    write(tmp_path, columns, ("image", "species"))
    assert shades(opened(tmp_path)) == (SHADES, LABELS)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("key", ["label", "labels", "objects"])
def test_several_labels_under_any_name(tmp_path, key, file_format):
    several = [[2], [0, 1], [], [2, 2]]
    columns = {"image": A_PICTURE, key: (Sequence(ClassLabel(names=NAMES)), several)}
    write(tmp_path, columns, ("image", key), file_format)
    expected = [[1 if c in labels else -1 for c in range(3)] for labels in several]
    assert shades(opened(tmp_path)) == (SHADES, expected)


CHANNELS = {
    "gray": (np.uint8, 1),
    "transparent": (np.uint8, 4),
    "16 bits, gray": (np.uint16, 1),
    "16 bits": (np.uint16, 3),
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_pictures_of_other_types(tmp_path, kind):
    dtype, channels = CHANNELS[kind]
    feature = Image(shape=(None, None, channels), dtype=dtype, encoding_format="png")
    pictures = [picture(i, dtype, channels) for i in range(4)]
    write(tmp_path, {"image": (feature, pictures), "label": A_LABEL})
    assert shades(opened(tmp_path)) == (SHADES, LABELS)


REFUSED = {
    "several pictures": (
        {"left": A_PICTURE, "right": A_PICTURE, "label": A_LABEL},
        r"^tiny has several Image features \(left, right\), and neither",
    ),
    "real numbers": (
        {
            "image": (
                Image(shape=(6, 5, 1), dtype=np.float32),
                [m.astype(np.float32) for m in MASKS],
            )
        },
        r"^tiny: Image feature 'image' has floating-point values \(Image, float32\)",
    ),
    "a sequence of pictures": (
        {"image": (Sequence(RGB), [[p] for p in PICTURES]), "label": A_LABEL},
        "^tiny has no Image feature, only image, label",
    ),
    "a mask alone": (
        {
            "mask": (
                tfds.features.LabeledImage(shape=(None, None, 1), labels=3, encoding_format="png"),
                MASKS,
            ),
        },
        "^tiny has no Image feature, only mask",
    ),
    "a tensor": (
        {"image": (tfds.features.Tensor(shape=(6, 5, 3), dtype=np.uint8), PICTURES)},
        "^tiny has no Image feature, only image",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(tmp_path, kind):
    columns, message = REFUSED[kind]
    write(tmp_path, columns)
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path, labeled=False)
    assert "\n" not in str(error.value)

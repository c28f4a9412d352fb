"""Parts of labeled sources: fractions of each class, and images that a file lists."""

import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_tfds
from trainings import small_config, write_pictures

from gsjax.data import input_pipeline, photos, sources, subset
from gsjax.errors import UserError


def counted(labels, fraction):
    """How many images of each class are kept, one at a time."""
    sizes, kept = {}, {}
    for label in labels.tolist():
        sizes[label] = sizes.get(label, 0) + 1
    for label, size in sizes.items():
        kept[label] = max(1, int(np.rint(fraction * size)))
    return kept


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.37, 1.0])
def test_a_fraction_holds_as_much_of_each_class(fraction):
    labels = np.random.default_rng(0).choice([0, 1, 2, 5], 800, p=[0.6, 0.3, 0.09, 0.01])
    chosen = subset.stratified(labels, fraction, 5)
    assert np.all(np.diff(chosen) > 0)  # ascending, none twice
    found = dict(zip(*map(np.ndarray.tolist, np.unique(labels[chosen], return_counts=True)),
                     strict=True))  # fmt: skip
    assert found == counted(labels, fraction)


def test_a_fraction_is_a_function_of_seed_and_labels_and_grows():
    labels = np.random.default_rng(0).integers(0, 7, 500)
    few, more = (subset.stratified(labels, fraction, 5) for fraction in (0.01, 0.1))
    assert set(few) < set(more)
    np.testing.assert_array_equal(more, subset.stratified(labels.copy(), 0.1, 5))
    assert set(more) != set(subset.stratified(labels, 0.1, 6))
    # Every image is as likely as any other of its class.
    drawn = np.bincount(
        np.concatenate([subset.stratified(labels, 0.5, seed) for seed in range(200)]),
        minlength=500,
    )
    assert drawn.min() > 60 and drawn.max() < 140


def test_a_part_is_a_source_of_its_own():
    config = small_config()
    whole = sources.open_source(config.data, "train", labeled=True)
    indices = np.array([3, 500, 501, 4000])
    part = subset.restricted(whole, indices)
    assert part.num_examples == 4 and part.numbers == (3, 500, 501, 4000)
    np.testing.assert_array_equal(part.labels, whole.labels[indices])
    tiles, labels = photos.tiles("train", 16)
    for image, index in zip(input_pipeline.load_images(part, range(4)), indices, strict=True):
        np.testing.assert_array_equal(image, tiles[index])
    config.unlock()
    config.batch_size = 2
    for batch in input_pipeline.train_batches(part, config, 0, 6, num_views=1):
        np.testing.assert_array_equal(batch["label"], labels[indices[batch["index"]]])
    assert part.image_name(2).startswith("image 501 of data.source=photos, split 'train'")
    assert subset.restricted(part, np.array([1, 3])).numbers == (500, 4000)


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path / "data")
    config = small_config(data__source="folder", data__data_dir=str(tmp_path / "data"))
    return sources.open_source(config.data, "train", labeled=True)


def chosen(source, tmp_path, *names):
    (tmp_path / "names.txt").write_text("\n".join(names))
    return subset.choose(source, 1.0, str(tmp_path / "names.txt"), 5)


def test_names_are_those_of_the_files(folder, tmp_path):
    part = chosen(folder, tmp_path, "", "00.png", "dark/02.png", "07.png", "00.png")
    assert [path.rsplit("/", 2)[1:] for path in part.paths] == [
        ["bright", "07.png"], ["dark", "00.png"], ["dark", "02.png"],
    ]  # fmt: skip
    assert part.labels.tolist() == [0, 1, 1]
    assert part.image_name(0).endswith("train/bright/07.png")


def test_names_that_do_not_fit_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"2 of the 3 names in .*names.txt, such as a.png, are not"):
        chosen(folder, tmp_path, "00.png", "a.png", "b.png")
    with pytest.raises(UserError, match="lists no images"):
        chosen(folder, tmp_path, "", "  ")
    with pytest.raises(UserError, match="label_file: .*nothing.txt cannot be read"):
        subset.choose(folder, 1.0, str(tmp_path / "nothing.txt"), 5)
    source = subset.restricted(
        sources.open_source(small_config().data, "train", labeled=True), np.arange(9)
    )
    with pytest.raises(UserError, match="does not record the names of its images"):
        chosen(source, tmp_path, "00.png")


def test_a_name_of_several_images_is_refused(tmp_path):
    write_pictures(tmp_path / "data")
    for name in ("bright", "dark"):
        path = tmp_path / "data/train" / name / "00.png"
        path.write_bytes((tmp_path / "data/train/dark/00.png").read_bytes())
    config = small_config(data__source="folder", data__data_dir=str(tmp_path / "data"))
    source = sources.open_source(config.data, "train", labeled=True)
    with pytest.raises(UserError, match=r"2 images named 00\.png: list their paths"):
        chosen(source, tmp_path, "00.png")
    assert chosen(source, tmp_path, "dark/00.png").num_examples == 1


def tiny(tmp_path, **overrides):
    config = small_config(data__source="tiny", data__data_dir=str(tmp_path), **overrides)
    return sources.open_source(config.data, "train", labeled=True)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_labels_of_tfds_are_known_or_read(tmp_path, file_format):
    tiny_tfds.write(tmp_path, file_format)
    part = subset.choose(tiny(tmp_path), 0.5, "", 5)
    labels = np.array(tiny_tfds.labels("train"))
    expected = subset.stratified(labels, 0.5, 5)
    assert part.numbers == tuple(expected)
    images = tiny_tfds.pictures("train")
    for image, index in zip(
        input_pipeline.load_images(part, range(part.num_examples)), expected, strict=True
    ):
        np.testing.assert_array_equal(image, images[index])


def test_what_is_read_sequentially_is_refused(tmp_path):
    tiny_tfds.write(tmp_path)
    source = tiny(tmp_path, data__memory_gb="0")
    assert source.shards
    with pytest.raises(UserError, match=r"read sequentially, so a part .* data\.memory_gb, or"):
        subset.choose(source, 0.5, "", 5)
    assert subset.choose(source, 1.0, "", 5) is source


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_names_that_tfds_records(tmp_path, file_format):
    """As imagenet2012 does, whose published subsets name files."""
    pictures = tiny_tfds.pictures("train")[:6]
    examples = [
        {"image": image, "label": i % 2, "file_name": f"n{i % 2}_{i}.JPEG"}
        for i, image in enumerate(pictures)
    ]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        "file_name": tfds.features.Text(),
    }
    tiny_tfds.write_features(tmp_path, features, examples, ("image", "label"), file_format)
    part = chosen(tiny(tmp_path), tmp_path, "n1_5.JPEG", "n0_2.JPEG")
    assert part.numbers == (2, 5)
    np.testing.assert_array_equal(input_pipeline.load_images(part, [1])[0], pictures[5])
    with pytest.raises(UserError, match=re.escape("n0_1.JPEG, are not in")):
        chosen(tiny(tmp_path), tmp_path, "n0_1.JPEG")

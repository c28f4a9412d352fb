import threading

import jax
import numpy as np
import pytest
import tiny_tfds
from PIL import Image
from test_crops import resize_with_pillow

from gsjax import similarity
from gsjax.config import defaults
from gsjax.data import input_pipeline, sources, transforms
from gsjax.errors import UserError

SIXTEEN = transforms.central(16)


def _config(batch_size=8, seed=5, **data):
    config = defaults.get_config()
    config.batch_size, config.seed = batch_size, seed
    config.data.update(data)
    return config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """23 training pictures of various sizes, in 4 shards."""
    folder = tmp_path_factory.mktemp("tfds")
    tiny_tfds.write(folder, num_shards=4)
    return str(folder)


# Most quick tests of training read the photos.
@pytest.fixture(
    params=[pytest.param("photos", marks=pytest.mark.slow), "memory", "sequence", "folder"]
)
def case(request, tmp_path):
    """A config and its opened source, of each kind."""
    if request.param == "photos":
        config = _config()
    elif request.param == "folder":
        for i, image in enumerate(tiny_tfds.pictures("train")):
            Image.fromarray(image).save(tmp_path / f"{i:02}.png")
        config = _config(4, source="folder", data_dir=str(tmp_path), split="")
    else:
        memory_gb = 4.0 if request.param == "memory" else 0.0
        config = _config(
            4, source="tiny", data_dir=request.getfixturevalue("tiny"), memory_gb=memory_gb
        )
    return config, sources.open_source(config.data, config.data.split)


def _train(case, start, stop, *host):
    config, source = case
    return list(input_pipeline.train_batches(source, config, start, stop, *host))


def _assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        jax.tree.map(np.testing.assert_array_equal, batch, other)


def test_contents(case):
    """Views are crops of the originals: Pillow's crop and resize give the same, to rounding."""
    config, source = case
    size = config.data.image_size
    for batch in _train(case, 0, 3):
        rows = config.batch_size
        columns = {**batch, **batch["global"]._asdict()}
        del columns["global"]
        types = {name: (values.shape, values.dtype.name) for name, values in columns.items()}
        assert types == {
            "images": ((rows, 2, size, size, 3), "uint8"),
            "boxes": ((rows, 2, 4), "float32"),
            "size": ((rows, 2), "int32"),
            "label": ((rows,), "int32"),
            "index": ((rows,), "int64"),
        }
        originals = input_pipeline.load_images(source, batch["index"])
        for row, original in enumerate(originals):
            np.testing.assert_array_equal(batch["size"][row], original.shape[:2])
            for view, box in zip(*(column[row] for column in batch["global"]), strict=True):
                top, left, height, width = map(int, box)
                cut = Image.fromarray(original[top : top + height, left : left + width])
                expected = np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR))
                np.testing.assert_allclose(view.astype(int), expected.astype(int), atol=2)
        if config.data.source != "folder":
            if source.labels is not None:
                np.testing.assert_array_equal(batch["label"], source.labels[batch["index"]])
            else:
                np.testing.assert_array_equal(batch["label"], batch["index"] % 3)
        else:
            np.testing.assert_array_equal(batch["label"], -1)


def test_a_restart_changes_nothing(case):
    whole = _train(case, 0, 13)
    for start in (1, 10):  # an epoch of the tiny data set has 5 steps
        _assert_equal(_train(case, start, 13), whole[start:])
    assert _train(case, 13, 13) == []


def test_each_index_once_an_epoch_in_another_order(case):
    config, source = case
    config.batch_size = max(config.batch_size, source.num_examples // 5)
    steps = source.num_examples // config.batch_size
    epochs = [
        np.concatenate([batch["index"] for batch in _train(case, e * steps, (e + 1) * steps)])
        for e in range(3)
    ]
    for order in epochs:
        assert len(np.unique(order)) == len(order) == steps * config.batch_size
        assert (np.sort(order) != order).any()
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
    boxes = np.concatenate([batch["global"].boxes for batch in _train(case, 0, 2 * steps)])
    # Of 10,000 pairs of boxes, two may be the same by chance.
    assert len(np.unique(boxes.reshape(len(boxes), -1), axis=0)) > 0.999 * len(boxes) - 1


def test_the_seed_changes_order_and_crops(case):
    config, _ = case
    first = _train(case, 0, 2)
    config.seed += 1
    other = _train(case, 0, 2)
    assert any((a["index"] != b["index"]).any() for a, b in zip(first, other, strict=True))
    assert all(
        (a["global"].boxes != b["global"].boxes).any() for a, b in zip(first, other, strict=True)
    )


def test_two_hosts_give_the_batches_of_one(case):
    config, source = case
    whole = _train(case, 2, 7)
    hosts = [_train(case, 2, 7, host, 2) for host in range(2)]
    joined = [
        jax.tree.map(lambda a, b: np.concatenate([a, b]), *parts)
        for parts in zip(*hosts, strict=True)
    ]
    if not source.shards:
        _assert_equal(joined, whole)
        return
    # In sequence each host has its own half of the records; resumed, it repeats itself.
    halves = [np.concatenate([batch["index"] for batch in batches[3:]]) for batches in hosts]
    assert halves[0].max() < 23 // 2 <= halves[1].min()
    _assert_equal(hosts[1][2:], _train(case, 4, 7, 1, 2))
    # Both go through an epoch in the same five steps, though one has a record more.
    for host in range(2):
        batches = _train(case, 0, 15, host, 2)
        assert len(batches) == 15
        for epoch in range(3):
            indices = [batch["index"] for batch in batches[5 * epoch : 5 * epoch + 5]]
            assert len(np.unique(np.concatenate(indices))) == 10


def test_sequence_on_real_files(shared_data):
    data_dir = str(shared_data)
    config = _config(128, source="cifar10", data_dir=data_dir, memory_gb=0.0)
    source = sources.open_source(config.data, "train")
    assert source.shards
    whole = _train((config, source), 0, 4)
    _assert_equal(_train((config, source), 2, 4), whole[2:])
    config.data.memory_gb = 4.0
    in_memory = sources.open_source(config.data, "train")
    indices = whole[0]["index"]
    assert indices.max() > 10_000, "shuffled through a large buffer"
    np.testing.assert_array_equal(whole[0]["label"], in_memory.labels[indices])
    _assert_images_equal(source, in_memory, indices[:5])


def _assert_images_equal(source, other, indices):
    pairs = zip(
        input_pipeline.load_images(source, indices),
        input_pipeline.load_images(other, indices),
        strict=True,
    )
    for image, expected in pairs:
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("case", ["memory", "sequence", "folder"], indirect=True)
@pytest.mark.parametrize(("batch_size", "hosts"), [(23, 1), (8, 2), (20, 4), (64, 2)])
def test_test_batches_count_and_order(case, batch_size, hosts):
    _, source = case
    parts = [
        list(input_pipeline.test_batches(source, SIXTEEN, batch_size, host, hosts))
        for host in range(hosts)
    ]
    num_batches = -(-23 // batch_size)
    assert [len(part) for part in parts] == hosts * [num_batches]
    joined = [
        {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        for batches in zip(*parts, strict=True)
    ]
    rows = {name: np.concatenate([batch[name] for batch in joined]) for name in joined[0]}
    assert rows["image"].shape == (num_batches * batch_size, 16, 16, 3)
    np.testing.assert_array_equal(rows["index"][:23], np.arange(23))
    np.testing.assert_array_equal(rows["index"][23:], -1)
    np.testing.assert_array_equal(rows["label"][23:], -1)
    np.testing.assert_array_equal(rows["image"][23:], 0)
    assert {name: values.dtype.name for name, values in rows.items()} == {
        "image": "uint8", "label": "int32", "index": "int64"
    }  # fmt: skip


@pytest.mark.parametrize("case", ["memory", "sequence", "folder"], indirect=True)
def test_test_batches_of_some_pictures(case):
    _, source = case
    wanted = np.array([1, 5, 6, 20, 22])
    batches = list(input_pipeline.test_batches(source, SIXTEEN, 2, indices=wanted))
    np.testing.assert_array_equal(
        np.concatenate([batch["index"] for batch in batches]), [*wanted, -1]
    )
    (whole,) = input_pipeline.test_batches(source, SIXTEEN, 23)
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(images[:5], whole["image"][wanted])


def test_batch_sizes_that_do_not_fit(case):
    config, source = case
    with pytest.raises(UserError, match="batch of 8 images.*3 hosts"):
        input_pipeline.test_batches(source, SIXTEEN, 8, 0, 3)
    with pytest.raises(UserError, match=f"batch of {config.batch_size} images.*3 hosts"):
        input_pipeline.train_batches(source, config, 0, 1, 0, 3)
    config.batch_size = source.num_examples + 1
    with pytest.raises(UserError, match=f"more than the {source.num_examples} images"):
        input_pipeline.train_batches(source, config, 0, 1)


def test_fewer_views_are_the_first_ones(case):
    config, source = case
    eight, *others = (
        next(input_pipeline.train_batches(source, config, 1, 2, num_views=n)) for n in (8, 3, 2, 1)
    )
    assert eight["global"].images.shape[1] == 8
    for number, fewer in zip((3, 2, 1), others, strict=True):
        for some, whole in zip(fewer["global"], eight["global"], strict=True):
            np.testing.assert_array_equal(some, whole[:, :number])


def test_local_views_change_nothing_else(case):
    config, source = case
    plain, _ = _train(case, 0, 2)
    config.crops.local_views, config.crops.local_size = 3, 12
    unasked, _ = _train(case, 0, 2)
    _assert_equal([unasked], [plain])
    batch = next(input_pipeline.train_batches(source, config, 0, 2, local_views=True))
    local = batch.pop("local")
    _assert_equal([batch], [plain])
    assert local.images.shape == (config.batch_size, 3, 12, 12, 3)
    assert local.images.dtype == np.uint8 and local.boxes.shape == (config.batch_size, 3, 4)
    # Each view shows what its box encloses.
    originals = input_pipeline.load_images(source, batch["index"][:2])
    for original, boxes, views in zip(originals, local.boxes, local.images, strict=False):
        for (top, left, height, width), view in zip(boxes.astype(int), views, strict=True):
            cut = Image.fromarray(original[top : top + height, left : left + width])
            expected = np.asarray(cut.resize((12, 12), Image.Resampling.BILINEAR))
            assert np.abs(view.astype(int) - expected).max() <= 2


def test_a_range_of_the_overlap_holds_for_two_views_alone(case):
    config, source = case
    plain, _ = _train(case, 0, 2)
    config.crops.min_overlap, config.crops.max_overlap = 0.3, 0.4
    batch, _ = _train(case, 0, 2)
    outside = similarity.is_outside(plain["global"].boxes, "iou", 0.3, 0.4)
    assert outside.any() and not similarity.is_outside(batch["global"].boxes, "iou", 0.3, 0.4).all()
    changed = (batch["global"].boxes != plain["global"].boxes).any(axis=(1, 2))
    np.testing.assert_array_equal(changed, outside)
    one = next(input_pipeline.train_batches(source, config, 0, 1, num_views=1))
    np.testing.assert_array_equal(one["global"].boxes, plain["global"].boxes[:, :1])


def test_an_abandoned_iterator_leaves_nothing(case):
    config, source = case
    before = threading.active_count()
    for _ in range(2):
        batches = input_pipeline.train_batches(source, config, 0, 10**9)
        next(batches)
        batches.close()
        next(input_pipeline.test_batches(source, SIXTEEN, 4))
    assert threading.active_count() == before


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_views_are_resized_as_configured(tiny, method):
    """Global and local ones, as Pillow does."""
    config = _config(4, source="tiny", data_dir=tiny)
    config.augment.interpolation = method
    config.crops.local_views, config.crops.local_size = 1, 16
    source = sources.open_source(config.data, "train")
    (batch,) = input_pipeline.train_batches(source, config, 0, 1, local_views=True)
    pictures = tiny_tfds.pictures("train")
    for name in ("global", "local"):
        for index, views, boxes in zip(batch["index"], *batch[name], strict=True):
            for view, (top, left, height, width) in zip(views, boxes, strict=True):
                cut = Image.fromarray(pictures[index]).crop((left, top, left + width, top + height))
                resized = resize_with_pillow(cut, len(view), method)
                assert np.abs(view.astype(int) - np.asarray(resized)).max() <= 2

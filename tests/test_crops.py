import math

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image

from gsjax import similarity
from gsjax.config import defaults
from gsjax.data import crops

LAWS = ("torchvision", "tf", "byol")


def _settings(crop="torchvision", min_scale=0.08, max_scale=1.0):
    settings = defaults.get_config().augment
    settings.crop, settings.min_scale, settings.max_scale = crop, min_scale, max_scale
    return settings


def _draw(count, height, width, settings, seed=0):
    """Boxes [count, 2, 4] of many positions."""

    @tf.autograph.experimental.do_not_convert
    def boxes(position):
        size = tf.constant([height, width])
        return crops.random_resized_crop_boxes(tf.stack([seed, position]), size, settings)

    dataset = tf.data.Dataset.range(count).map(boxes, num_parallel_calls=2, deterministic=True)
    return next(dataset.batch(count).as_numpy_iterator())


def _overlap_statistics(boxes, threshold=0.5):
    """Mean IoA, P(IoA = 0), P(IoA > 0.5) and mean psi, in both directions."""
    begin, end = boxes[..., :2], boxes[..., :2] + boxes[..., 2:]
    sides = np.minimum(end[:, 0], end[:, 1]) - np.maximum(begin[:, 0], begin[:, 1])
    intersection = np.prod(np.maximum(sides, 0), axis=-1, dtype=np.float64)
    ioa = intersection[:, None] / np.prod(boxes[..., 2:], axis=-1, dtype=np.float64)
    psi = np.minimum(ioa / threshold, 1)
    return np.array([ioa.mean(), (ioa == 0).mean(), (ioa > 0.5).mean(), psi.mean()])


# IoA of pairs that torchvision's own RandomResizedCrop drew, 100 thousand of each kind.
GOLDENS = [
    (32, 32, 0.08, (0.623, 0.019, 0.647, 0.843)),
    (32, 32, 0.2, (0.689, 0.001, 0.748, 0.930)),
    (375, 500, 0.08, (0.586, 0.030, 0.601, 0.816)),
    (375, 500, 0.2, (0.665, 0.004, 0.722, 0.917)),
]


@pytest.mark.parametrize(("height", "width", "min_scale", "golden"), GOLDENS)
def test_overlaps_are_those_of_torchvision(height, width, min_scale, golden):
    boxes = _draw(30_000, height, width, _settings(min_scale=min_scale))
    np.testing.assert_allclose(_overlap_statistics(boxes), golden, atol=0.004)


def _reference_box(draws, height, width, settings):
    """torchvision's get_params as a loop, with the uniform numbers of one view given: [22]."""
    areas, ratios, corner = draws[:10], draws[10:20], draws[20:]
    for u, v in zip(areas, ratios, strict=True):
        low, high = settings.min_scale, settings.max_scale
        area = height * width * (low + (high - low) * u)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * v)
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if settings.crop == "byol":
            h, w = max(min(h, height), 1), max(min(w, width), 1)
        if 0 < w <= width and 0 < h <= height:
            top = math.floor(corner[0] * (height - h + 1))
            left = math.floor(corner[1] * (width - w + 1))
            return top, left, h, w
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        h, w = height, round(height * (4 / 3))
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("law", ["torchvision", "byol"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (300, 200), (40, 400), (333, 97), (1, 5)])
def test_boxes_equal_the_literal_loop(law, height, width):
    settings = _settings(law)
    boxes = _draw(200, height, width, settings, seed=3)
    for position in range(200):
        draws = tf.random.stateless_uniform([2, 22], [3, position]).numpy().astype(float)
        expected = [_reference_box(view, height, width, settings) for view in draws]
        np.testing.assert_array_equal(boxes[position], expected)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (10, 1000, (0, 493, 10, 13)),
        (1000, 10, (493, 0, 13, 10)),
        (1, 100, (0, 49, 1, 1)),
    ],
)
def test_extreme_shapes_fall_back_to_the_center(height, width, box):
    boxes = _draw(50, height, width, _settings(min_scale=0.9))
    np.testing.assert_array_equal(boxes, np.broadcast_to(np.float32(box), boxes.shape))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (61, 200), (3, 2), (1, 1)])
def test_boxes_are_whole_pixels_inside_the_image(law, height, width):
    boxes = _draw(300, height, width, _settings(law))
    assert boxes.dtype == np.float32
    np.testing.assert_array_equal(boxes, np.round(boxes))
    assert (boxes[..., :2] >= 0).all() and (boxes[..., 2:] >= 1).all()
    assert (boxes[..., :2] + boxes[..., 2:] <= [height, width]).all()


@pytest.mark.parametrize("law", LAWS)
def test_the_area_range_is_kept(law):
    boxes = _draw(500, 400, 400, _settings(law, min_scale=0.2, max_scale=0.5))
    area = boxes[..., 2].astype(float) * boxes[..., 3] / 400**2
    assert 0.195 < area.min() < 0.22 and 0.48 < area.max() < 0.505


@pytest.mark.parametrize("law", LAWS)
def test_boxes_depend_on_seed_position_and_view(law):
    settings = _settings(law)
    boxes = _draw(100, 300, 300, settings)
    np.testing.assert_array_equal(boxes, _draw(100, 300, 300, settings))
    assert (boxes != _draw(100, 300, 300, settings, seed=1)).any(axis=(1, 2)).all()
    assert (boxes[:, 0] != boxes[:, 1]).any(axis=1).all()
    assert len(np.unique(boxes.reshape(100, 8), axis=0)) == 100


def test_laws_differ_on_long_images():
    """Where crops seldom fit, byol clamps them to the image: full height, larger areas."""
    full_height = {law: (_draw(2000, 50, 200, _settings(law))[..., 2] == 50).mean() for law in LAWS}
    assert full_height["byol"] > 0.4 and full_height["torchvision"] < 0.2, full_height
    assert full_height["tf"] < 0.2, full_height


def _noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resize_with_pillow(image, size, method):
    """The width first: newer versions choose the order, and bicubic values are clipped between."""
    kernel = Image.Resampling[method.upper()]
    return image.resize((size, image.height), kernel).resize((size, size), kernel)


@pytest.mark.parametrize("box", [(0, 0, 50, 70), (7, 11, 20, 25), (3, 60, 40, 10), (49, 69, 1, 1)])
@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_view_equals_pillows(box, size, method):
    image = _noise(50, 70)
    box_tensor = tf.constant(box, tf.float32)
    view = crops.crop_and_resize(tf.constant(image), box_tensor, size, method).numpy()
    top, left, height, width = box
    cut = Image.fromarray(image).crop((left, top, left + width, top + height))
    expected = np.asarray(resize_with_pillow(cut, size, method))
    assert view.shape == (size, size, 3) and view.dtype == np.uint8
    # Pillow rounds between its two passes.
    difference = view.astype(int) - expected
    assert np.abs(difference).max() <= 2
    assert abs(difference.mean()) < 0.15, "rounded, not cut off"


def test_a_crop_of_its_own_size_is_untouched():
    image = _noise(40, 40)
    view = crops.crop_and_resize(tf.constant(image), tf.constant([3.0, 5.0, 32.0, 32.0]), 32)
    np.testing.assert_array_equal(view, image[3:35, 5:37])


@pytest.mark.parametrize(("height", "width", "top", "left"), [(32, 32, 0, 0), (37, 45, 2, 6)])
def test_central_crop_rounds_as_torchvision(height, width, top, left):
    """round(2.5) = 2 and round(6.5) = 6: to the even number, as Python's round."""
    image = _noise(height, width)
    crop = crops.central_crop(tf.constant(image), 32).numpy()
    np.testing.assert_array_equal(crop, image[top : top + 32, left : left + 32])


@pytest.mark.parametrize("crop", LAWS)
def test_any_number_of_views(crop):
    """Further views change none of the first ones, and are drawn as they are."""
    settings = _settings(crop, 0.08, 1.0)

    @tf.function(autograph=False)
    def boxes(num_views, seed):
        return crops.random_resized_crop_boxes(seed, tf.constant([60, 80]), settings, num_views)

    def draw(num_views, position=3):
        return boxes(num_views, tf.constant([5, position], tf.int64)).numpy()

    eight = draw(8)
    assert eight.shape == (8, 4) and len(np.unique(eight, axis=0)) == 8
    for num_views in (1, 2, 3, 5):
        np.testing.assert_array_equal(draw(num_views), eight[:num_views])
    areas = [np.prod(draw(4, position)[:, 2:], axis=1) for position in range(400)]
    first, later = np.reshape(areas, (400, 2, 2)).swapaxes(0, 1).reshape(2, -1)
    assert scipy.stats.ks_2samp(first, later).pvalue > 1e-3


@pytest.mark.parametrize("crop", LAWS)
def test_each_view_has_its_own_range_of_areas(crop):
    """Further views have the last one; a list of equal values is that value."""
    listed = _settings(crop)
    with listed.unlocked():
        listed.update(min_scale="0.6,0.1", max_scale="0.9,0.3")

    def draw(settings, position):
        seed = tf.constant([5, position], tf.int64)
        return crops.random_resized_crop_boxes(seed, tf.constant([80, 80]), settings, 5).numpy()

    areas = [np.prod(draw(listed, position)[:, 2:], axis=1) / 6400 for position in range(50)]
    assert 0.57 < np.min(areas, axis=0)[0] and np.max(areas, axis=0)[0] < 0.93
    assert 0.08 < np.min(areas, axis=0)[1:].min() and np.max(areas, axis=0)[1:].max() < 0.33
    with listed.unlocked():
        listed.update(min_scale="0.2,0.2", max_scale="0.5,0.5")
    one = _settings(crop, 0.2, 0.5)
    np.testing.assert_array_equal(draw(listed, 3), draw(one, 3))


def _overlap_settings(low=0.0, high=1.0, measure="iou"):
    settings = defaults.get_config().crops
    settings.overlap, settings.min_overlap, settings.max_overlap = measure, low, high
    return settings


def _draws(seed, draw):
    """The boxes of all attempts, [100, 2, 4], drawn one by one without a range."""
    seeds = [seed, *(tf.random.fold_in(seed, 2**16 + attempt) for attempt in range(1, 100))]
    return np.array([draw(own) for own in seeds])


def _distance(boxes, overlap):
    """How far two boxes [..., 2, 4] are out of the range; in both directions for IoA."""
    measure = {"iou": similarity.iou, "ioa": similarity.ioa}[overlap.overlap]
    found = np.asarray(measure(boxes, boxes[..., ::-1, :]))
    return np.maximum(overlap.min_overlap - found, found - overlap.max_overlap).max(axis=-1)


@pytest.mark.parametrize(
    ("law", "overlap"),
    [
        ("torchvision", _overlap_settings(0.0, 0.2)),
        ("torchvision", _overlap_settings(0.5, 1.0, "ioa")),
        ("tf", _overlap_settings(0.2, 0.5)),
        ("byol", _overlap_settings(0.6, 0.7, "ioa")),
        ("torchvision", _overlap_settings(0.99, 0.995)),  # which hardly any draw meets
    ],
    ids=["0 to 0.2", "ioa 0.5 to 1", "0.2 to 0.5", "ioa 0.6 to 0.7", "0.99 to 0.995"],
)
def test_views_out_of_the_range_are_redrawn(law, overlap):
    """The first draw in the range, or the closest of a hundred; as a loop."""
    settings, size = _settings(law, min_scale=0.3), tf.constant([60, 80])

    @tf.function(autograph=False)
    def draw(seed):
        return crops.random_resized_crop_boxes(seed, size, settings)

    first = met = 0
    for position in range(6):
        seed = tf.constant([5, position], tf.int64)
        boxes = crops.random_resized_crop_boxes(seed, size, settings, 2, overlap).numpy()
        drawn = _draws(seed, draw)
        distances = _distance(drawn, overlap)
        inside = distances <= 1e-6
        chosen = np.argmax(inside) if inside.any() else np.argmin(distances)
        np.testing.assert_array_equal(boxes, drawn[chosen])
        first, met = first + bool(inside[0]), met + bool(inside.any())
        outside = similarity.is_outside(
            boxes[None], overlap.overlap, overlap.min_overlap, overlap.max_overlap
        )
        assert bool(outside[0]) != bool(inside.any())
    assert first < 6 and (met > 0 if overlap.min_overlap < 0.9 else met < 6), (first, met)


def test_a_range_of_every_pair_of_views():
    """Also of views three and four; the full range changes nothing."""
    seed, size = tf.constant([5, 3], tf.int64), tf.constant([60, 80])
    overlap = _overlap_settings(0.4, 0.6)
    boxes = crops.random_resized_crop_boxes(seed, size, _settings(), 4, overlap).numpy()
    assert _distance(boxes[:2], overlap) <= 1e-6 and _distance(boxes[2:], overlap) <= 1e-6
    full = crops.random_resized_crop_boxes(seed, size, _settings(), 4, _overlap_settings())
    plain = crops.random_resized_crop_boxes(seed, size, _settings(), 4)
    np.testing.assert_array_equal(full, plain)


@pytest.mark.parametrize("law", LAWS)
def test_local_views(law):
    """Their areas are in their own range; no two views are alike, global ones included."""
    settings, own = _settings(law), defaults.get_config().crops
    own.local_views, own.local_min_scale, own.local_max_scale = 5, 0.1, 0.2
    size = tf.constant([300, 400])
    boxes = []
    for position in range(50):
        seed = tf.constant([5, position], tf.int64)
        local = crops.local_boxes(seed, size, law, own).numpy()
        assert local.shape == (5, 4) and local.dtype == np.float32
        area = np.prod(local[:, 2:], axis=1) / (300 * 400)
        assert 0.095 < area.min() and area.max() < 0.205
        boxes += [*local, *crops.random_resized_crop_boxes(seed, size, settings).numpy()]
    assert len(np.unique(boxes, axis=0)) == len(boxes)

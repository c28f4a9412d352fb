"""The transforms of evaluations against Pillow, as torchvision's classes call it."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_decode_fuzz import forget_peak, memory

from gsjax.data import crops, transforms
from gsjax.data.careful import careful

SHAPES = [(32, 32), (250, 250), (300, 201), (97, 400), (225, 224), (20, 60)]


def photo(height, width):
    """A smooth picture with some noise and saturated parts, which bicubic overshoots."""
    generator = np.random.default_rng(height)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(rows / 7), np.cos(columns / 5), np.sin((rows + columns) / 9)], -1)
    noisy = 127 + 160 * waves + 20 * generator.normal(size=(height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def resized(image, height, width, method):
    return Image.fromarray(image).resize((width, height), method)


def square(image, size, short_side, method):
    height, width = image.shape[:2]
    long_side = int(short_side * max(height, width) / min(height, width))
    scaled = (long_side, short_side) if height > width else (short_side, long_side)
    image = np.asarray(resized(image, *scaled, method))
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def apply(transform, image, index=0):
    return transform(tf.constant(index), tf.constant(image)).numpy().astype(int)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "short_side"), [(24, 24), (96, 96), (112, 128), (224, 256)])
def test_central_square(size, short_side, shape):
    image = photo(*shape)
    expected = square(image, size, short_side, Image.Resampling.BILINEAR)
    np.testing.assert_allclose(apply(transforms.central(size), image), expected, atol=2)


@pytest.mark.parametrize(
    ("size", "crop_pct", "short_side"),
    [(224, 0.875, 256), (224, 0.95, 235), (224, 0.9, 248), (288, 1, 288), (32, 32 / 36, 36)],
)
def test_short_sides_are_those_of_timm(size, crop_pct, short_side):
    """timm rounds down."""
    assert transforms.central(size, "bicubic", crop_pct).short_side == short_side


def test_pictures_of_the_size_of_small_encoders_stay_as_they_are():
    for size in (32, 96):
        image = photo(size, size)
        np.testing.assert_array_equal(apply(transforms.central(size), image), image)
        np.testing.assert_array_equal(apply(transforms.transfer(size), image), image)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [32, 224])
def test_transfer_is_bicubic_without_a_margin(size, shape):
    image = photo(*shape)
    expected = square(image, size, size, Image.Resampling.BICUBIC)
    np.testing.assert_allclose(apply(transforms.transfer(size), image), expected, atol=2)


@pytest.mark.parametrize("shape", SHAPES)
def test_stretched(shape):
    image = photo(*shape)
    expected = np.asarray(resized(image, 64, 64, Image.Resampling.BILINEAR))
    np.testing.assert_allclose(apply(transforms.Stretched(64), image), expected, atol=2)


@pytest.mark.parametrize(
    ("shape", "scale", "expected"),
    [
        ((300, 200), 1.0, (100, 67)),
        ((50, 100), 1.0, (50, 100)),
        ((40, 60), 1.0, (40, 60)),  # never enlarged
        ((300, 200), 0.5, (50, 33)),
        ((40, 60), 0.5, (20, 30)),
        ((1, 900), 1.0, (1, 100)),
    ],
)
def test_long_side(shape, scale, expected):
    image = photo(*shape)
    result = apply(transforms.LongSide(100, scale), image)
    assert result.shape == (*expected, 3)
    oracle = np.asarray(resized(image, *expected, Image.Resampling.BILINEAR))
    np.testing.assert_allclose(result, oracle, atol=2)


def test_crop_is_pillows_and_comes_first():
    image = photo(80, 120)
    boxes = ((1.0, 2.0, 3.0, 4.0), (10.4, 20.6, 70.5, 71.5))
    transform = transforms.Cropped(boxes, transforms.Stretched(32))
    part = Image.fromarray(image).crop(boxes[1])
    expected = np.asarray(part.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(apply(transform, image, index=1), expected, atol=2)


def test_a_box_that_leaves_the_picture_is_cut():
    image = photo(80, 120)
    transform = transforms.Cropped(((-5.0, 60.0, 500.0, 90.0),), transforms.Stretched(16))
    expected = np.asarray(resized(image[60:80], 16, 16, Image.Resampling.BILINEAR))
    np.testing.assert_allclose(apply(transform, image), expected, atol=2)


LONG = [(1, 300), (300, 1), (3, 200), (200, 3), (7, 1000), (1000, 7), (40, 3000), (3000, 40)]


@pytest.mark.parametrize("shape", LONG)
@pytest.mark.parametrize("size", [8, 32, 224])
@pytest.mark.parametrize("create", [transforms.central, transforms.transfer])
def test_long_pictures_equal_the_whole_computation(create, size, shape):
    """The central square computed by itself against the one cut out of the whole."""
    image, transform = photo(*shape), create(size)
    scaled = [side * transform.short_side // min(shape) for side in shape]
    whole = crops.central_crop(crops.resize(tf.constant(image), scaled, transform.method), size)
    np.testing.assert_allclose(apply(transform, image), whole.numpy().astype(int), atol=1)


def test_pictures_up_to_16_times_as_long_as_wide_are_resized_as_a_whole():
    for shape in ((20, 320), (320, 20)):
        image = photo(*shape)
        scaled = [side * 256 // 20 for side in shape]
        whole = crops.central_crop(crops.resize(tf.constant(image), scaled), 224)
        np.testing.assert_array_equal(apply(transforms.central(224), image), whole)


@pytest.mark.parametrize("shape", [(2, 500), (500, 2)])
def test_graphs_refuse_long_pictures_unless_they_are_careful(shape):
    image = photo(*shape)
    expected = apply(transforms.central(32), image)

    def graph(image):
        return transforms.central(32)(tf.constant(0), image)

    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.function(graph)(tf.constant(image))
    with careful():
        result = tf.function(graph)(tf.constant(image))
    np.testing.assert_array_equal(result, expected)


WHOLE = ((0.0, 0.0, 1e6, 1e6),)
BOUNDED = {
    "central": transforms.central(224),
    "transfer": transforms.transfer(224),
    "stretched": transforms.Stretched(224),
    "long side": transforms.LongSide(1024),
    "cropped": transforms.Cropped(WHOLE, transforms.central(224)),
    "cropped, stretched": transforms.Cropped(WHOLE, transforms.Stretched(224)),
    "view": lambda _, image: crops.crop_and_resize(image, [0, 0, *image.shape[:2]], 224),
}


@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="no /proc")
@pytest.mark.parametrize("sides", [(1, 30_000), (1, 1_000_000), (89, 1_000_000), (9459, 9459)])
@pytest.mark.parametrize("name", BOUNDED)
def test_memory_does_not_grow_with_the_ratio_of_the_sides(name, sides):
    """100 MB and at most two copies of the picture, in both orientations."""
    for shape in {sides, sides[::-1]}:
        image = tf.zeros([*shape, 3], tf.uint8) + 7
        forget_peak()
        before = memory("VmRSS")
        result = BOUNDED[name](tf.constant(0), image).numpy()
        assert memory("VmHWM") - before < 100 + 2 * 3 * shape[0] * shape[1] / 2**20
        np.testing.assert_array_equal(result, 7)


def test_repr_tells_transforms_apart():
    several = [
        transforms.central(32), transforms.transfer(32), transforms.central(224),
        transforms.Stretched(32), transforms.LongSide(32), transforms.LongSide(32, 0.5),
        transforms.Cropped(((0.0, 0.0, 1.0, 1.0),), transforms.Stretched(32)),
        transforms.Cropped(((0.0, 0.0, 1.0, 2.0),), transforms.Stretched(32)),
    ]  # fmt: skip
    assert len({repr(transform) for transform in several}) == len(several)

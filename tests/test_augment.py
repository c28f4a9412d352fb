import colorsys
import functools
import itertools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.data
from PIL import Image, ImageEnhance, ImageOps

from gsjax import augment as aug
from gsjax.config import defaults

NEUTRAL = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # mean and std that change nothing


def only(**changes):
    """The settings with everything off except `changes`."""
    group = defaults.get_config().augment
    off = ("flip", "jitter", "brightness", "contrast", "saturation", "hue", "gray", "blur")
    return ml_collections.ConfigDict({**group.to_dict(), **dict.fromkeys(off, 0.0), **changes})


@pytest.fixture(scope="module")
def photos():
    """[6, 32, 32, 3] uint8 tiles of a photograph."""
    picture = skimage.data.astronaut()[:256, 100:484]
    small = np.asarray(Image.fromarray(picture).resize((96, 64), Image.Resampling.BILINEAR))
    return small.reshape(2, 32, 3, 32, 3).swapaxes(1, 2).reshape(6, 32, 32, 3)


def apply(images, settings, seed=0, mean_std=NEUTRAL, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), len(images))
    return jax.jit(lambda k, x: aug.augment(k, x, settings, *mean_std, dtype))(keys, images)


def unit(images):
    return jnp.float32(images) / 255


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0, 1.8])
@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color"])
def test_blends_equal_pillow(photos, name, factor):
    adjust = {
        "Brightness": aug.adjust_brightness,
        "Contrast": aug.adjust_contrast,
        "Color": aug.adjust_saturation,
    }[name]
    for photo in photos:
        enhance = getattr(ImageEnhance, name)(Image.fromarray(photo))
        expected = np.asarray(enhance.enhance(factor), np.float32)
        result = 255 * adjust(unit(photo), factor)
        np.testing.assert_allclose(result, expected, atol=2)


def test_gray_equals_pillow(photos):
    for photo in photos:
        expected = np.asarray(Image.fromarray(photo).convert("L"), np.float32)
        np.testing.assert_allclose(255 * aug.to_gray(unit(photo))[..., 0], expected, atol=2)


@pytest.mark.parametrize("shift", [-0.5, -0.2, 0.0, 0.07, 0.5])
def test_hue_equals_colorsys(photos, shift):
    # With the corners of the color cube, grays, and ties between channels.
    corners = np.array(list(itertools.product([0, 128, 255], repeat=3)), np.uint8)
    pixels = np.concatenate([photos[0].reshape(-1, 3), corners])
    expected = []
    for red, green, blue in pixels / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        expected.append(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value))
    result = aug.adjust_hue(unit(pixels[None]), shift)[0]
    np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize(("size", "sigma"), [(3, 0.1), (3, 1.0), (9, 2.0), (23, 1.3), (23, 5.0)])
def test_blur_equals_scipy(photos, size, sigma):
    image = np.asarray(unit(photos[1]))
    offsets = np.arange(size) - size // 2
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    expected = scipy.ndimage.correlate1d(image, kernel, axis=0, mode="mirror")
    expected = scipy.ndimage.correlate1d(expected, kernel, axis=1, mode="mirror")
    result = aug.gaussian_blur(jnp.array(image), sigma, size)
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_blur_has_the_highest_precision():
    jaxpr = jax.make_jaxpr(lambda x: aug.gaussian_blur(x, 1.0, 3))(jnp.zeros((8, 8, 3)))
    found = [eqn.params["precision"] for eqn in _equations(jaxpr.jaxpr, "dot_general")]
    assert len(found) == 2 and set(found) == {(jax.lax.Precision.HIGHEST,) * 2}


def _equations(jaxpr, name):
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        inner = getattr(equation.params.get("jaxpr"), "jaxpr", None)
        if inner is not None:
            yield from _equations(inner, name)


def test_kernel_size():
    sizes = {side: aug.kernel_size(side) for side in (8, 32, 96, 224)}
    assert sizes == {8: 3, 32: 3, 96: 9, 224: 23}


def test_jitter_is_the_chain_of_its_changes_in_every_order(photos):
    image = unit(photos[2])
    amounts = {"brightness": 1.5, "contrast": 1.6, "saturation": 1.7, "hue": 0.15}
    adjust = [aug.adjust_brightness, aug.adjust_contrast, aug.adjust_saturation, aug.adjust_hue]
    adjust = [jax.jit(function) for function in adjust]
    orders = np.array(list(itertools.permutations(range(4))))
    arrays = {name: jnp.float32(amount) for name, amount in amounts.items()}
    results = jax.jit(jax.vmap(functools.partial(aug.jitter, image, arrays)))(orders)
    expected = []
    for order in orders:
        changed = image
        for number in order:
            changed = adjust[number](changed, list(amounts.values())[number])
        expected.append(changed)
    np.testing.assert_allclose(results, expected, atol=1e-5)
    # Clipping sees to it that no two orders give the same.
    flat = np.asarray(results).reshape(24, -1)
    apart = np.abs(flat[:, None] - flat[None]).max(-1) + np.eye(24)
    assert apart.min() > 1e-3


def test_all_orders_are_equally_likely():
    keys = jax.random.split(jax.random.key(0), 4800)
    orders = np.asarray(jax.vmap(aug.jitter_order)(keys))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_flip(photos):
    np.testing.assert_array_equal(apply(photos, only(flip=1.0)), unit(photos)[:, :, ::-1])
    many = np.repeat(photos[:1, :2, :2], 2000, axis=0)
    flipped = np.any(apply(many, only(flip=0.5)) != unit(many), axis=(1, 2, 3))
    assert abs(flipped.mean() - 0.5) < 0.05


# Two pixels in two rows from which each change's amount can be read without clipping.
PAIR = np.array([[[102, 77, 51], [102, 77, 51]], [[77, 58, 38], [77, 58, 38]]], np.uint8)


def read_brightness(views, original):
    return views[:, 0, 0, 0] / original[0, 0, 0]


def read_contrast(views, original):
    rows = views[:, 0, 0, 0] - views[:, 1, 0, 0]
    return rows / (original[0, 0, 0] - original[1, 0, 0])


def read_saturation(views, original):
    return (views[:, 0, 0, 0] - views[:, 0, 0, 2]) / (original[0, 0, 0] - original[0, 0, 2])


def read_hue(views, original):
    hues = np.array([colorsys.rgb_to_hsv(*view[0, 0])[0] for view in views.astype(float)])
    return (hues - colorsys.rgb_to_hsv(*original[0, 0])[0] + 0.5) % 1 - 0.5


@pytest.mark.parametrize(
    ("name", "strength", "low", "high", "neutral", "read"),
    [
        ("brightness", 0.8, 0.2, 1.8, 1, read_brightness),
        ("brightness", 1.2, 0.0, 2.2, 1, read_brightness),
        ("contrast", 0.8, 0.2, 1.8, 1, read_contrast),
        ("saturation", 0.8, 0.2, 1.8, 1, read_saturation),
        ("hue", 0.2, -0.2, 0.2, 0, read_hue),
    ],
)
def test_jitter_amounts_and_probability(name, strength, low, high, neutral, read):
    many = np.repeat(PAIR[None], 3000, axis=0)
    views = np.asarray(apply(many, only(jitter=0.8, **{name: strength})))
    changed = np.any(views != np.asarray(unit(many)), axis=(1, 2, 3))
    assert abs(changed.mean() - 0.8) < 0.03
    original = np.asarray(unit(PAIR), float)
    amounts = read(views, original)
    np.testing.assert_allclose(amounts[~changed], neutral, atol=1e-5)
    uniform = scipy.stats.uniform(low, high - low)
    assert scipy.stats.kstest(amounts[changed], uniform.cdf).pvalue > 1e-3


def test_gray_probability_and_place(photos):
    many = np.repeat(PAIR[None], 3000, axis=0)
    views = np.asarray(apply(many, only(gray=0.2)))
    gray = np.all(views == views[..., :1], axis=(1, 2, 3))
    assert abs(gray.mean() - 0.2) < 0.03
    np.testing.assert_allclose(views[gray][0], aug.to_gray(unit(PAIR)).repeat(3, -1), atol=1e-6)
    np.testing.assert_array_equal(views[~gray][0], unit(PAIR))
    # After the jitter: otherwise a turned hue would leave no trace in a gray view.
    views = np.asarray(apply(photos, only(gray=1.0, jitter=1.0, hue=0.5)))
    assert np.all(views == views[..., :1])
    assert np.abs(views - aug.to_gray(unit(photos))).max() > 0.05


def test_blur_probability_and_sigma():
    impulse = np.zeros((3000, 5, 5, 3), np.uint8)
    impulse[:, 2, 2] = 255
    settings = only(blur=0.2, min_sigma=0.4, max_sigma=1.5)
    views = np.asarray(apply(impulse, settings), np.float64)
    blurred = np.any(views != np.float64(unit(impulse)), axis=(1, 2, 3))
    assert abs(blurred.mean() - 0.2) < 0.03
    # In one direction the neighbor has exp(-1 / (2 sigma^2)) of the center.
    ratio = views[blurred, 2, 1, 0] / views[blurred, 2, 2, 0]
    sigma = np.sqrt(-0.5 / np.log(ratio))
    assert scipy.stats.kstest(sigma, scipy.stats.uniform(0.4, 1.1).cdf).pvalue > 1e-3


def test_solarization_is_pillows(photos):
    inverted = np.asarray(apply(photos, only(solarize=1.0)))
    for image, result in zip(photos, inverted, strict=True):
        expected = ImageOps.solarize(Image.fromarray(image), 128)
        np.testing.assert_allclose(result, np.asarray(expected) / 255, atol=1e-6)
    many = np.repeat(photos[:1], 3000, axis=0)
    views = np.asarray(apply(many, only(solarize=0.2)))
    changed = np.any(views != np.asarray(unit(many)), axis=(1, 2, 3))
    assert abs(changed.mean() - 0.2) < 0.03


def test_solarization_comes_last_and_leaves_the_other_draws_alone(photos):
    settings = dict(flip=0.5, jitter=0.8, brightness=0.8, hue=0.2, gray=0.2, blur=0.5)
    without = np.asarray(apply(photos, only(**settings)))
    views = np.asarray(apply(photos, only(solarize=1.0, **settings)))
    np.testing.assert_allclose(views, np.where(without >= 0.5, 1 - without, without), atol=1e-6)


@functools.partial(jax.jit, static_argnames="dtype")
def everything(keys, images, dtype=jnp.float32):
    settings = defaults.get_config().augment.unlock()
    settings.blur = 0.5
    return aug.augment(keys, images, settings, *NEUTRAL, dtype)


def test_a_view_depends_on_its_key_alone(photos):
    keys = jax.random.split(jax.random.key(3), len(photos))
    views = everything(keys, photos)
    np.testing.assert_array_equal(everything(keys[::-1], photos[::-1]), views[::-1])
    np.testing.assert_allclose(everything(keys[2:4], photos[2:4]), views[2:4], atol=1e-6)
    assert views.min() >= -1e-6 and views.max() <= 1 + 1e-6


def test_views_of_one_image_differ(photos):
    keys = jax.random.split(jax.random.key(4), 6)
    views = np.asarray(everything(keys, np.repeat(photos[:1], 6, axis=0)))
    for first, second in itertools.combinations(views, 2):
        assert np.abs(first - second).max() > 1e-2


def test_nothing_on_is_the_test_transform(photos):
    mean_std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (photos / 255 - np.array(mean_std[0])) / np.array(mean_std[1])
    plain = jax.jit(lambda x: aug.normalize(x, *mean_std))(photos)
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    for settings in (only(), only(jitter=1.0), only(brightness=0.8, hue=0.2)):
        np.testing.assert_array_equal(apply(photos, settings, mean_std=mean_std), plain)
    half = apply(photos, only(), mean_std=mean_std, dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, plain.astype(jnp.bfloat16))


def test_float64_sees_the_same_views(photos):
    keys = jax.random.split(jax.random.key(5), len(photos))
    single = everything(keys, photos)
    with jax.enable_x64(True):
        double = everything(keys, photos, dtype=jnp.float64)
        assert double.dtype == jnp.float64
    np.testing.assert_allclose(double, single, atol=1e-4)

"""Augmentation of uint8 views on the device: flip, color jitter, gray, blur, solarization.

The semantics are torchvision's (ColorJitter, RandomGrayscale, GaussianBlur on float tensors).
The result for an image depends only on its key, not on its batch or device.
"""

import functools

import jax
import jax.numpy as jnp
import ml_collections

# Order of the keys of `jitter`'s `amounts`.
JITTERS = ("brightness", "contrast", "saturation", "hue")

# Folded into a view's key, for steps that came after the first nine draws. `split` takes 0 and 1.
_SOLARIZE = 2


def augment(
    keys: jax.Array,
    images: jax.Array,
    settings: ml_collections.ConfigDict,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """Augments and normalizes views, each with its own key (SimCLR, appendix A).

    In this order: horizontal flip, color jitter, gray, Gaussian blur, solarization, normalization.
    A step with probability or strength 0 costs nothing.

    Args:
      keys: [N] typed PRNG keys (`jax.random.key`), one per view.
      images: [N, S, S, 3] uint8 RGB.
      settings: the `augment` group of a config (`gsjax.config.defaults`), read at trace time; one
        number each (`gsjax.config.per_view`).
      mean: per-channel mean of the data set, in [0, 1].
      std: per-channel standard deviation of the data set.
      dtype: dtype of the result; pixels are computed in at least float32.

    Returns:
      [N, S, S, 3] normalized views of `dtype`.
    """
    views = jax.vmap(functools.partial(_augment_one, settings))(keys, _unit(images, dtype))
    return _standardize(views, mean, std, dtype)


def normalize(
    images: jax.Array,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """Returns (images / 255 - mean) / std, the evaluation transform.

    Args:
      images: [..., 3] uint8 RGB.
      mean: per-channel mean of the data set, in [0, 1].
      std: per-channel standard deviation of the data set.
      dtype: dtype of the result.

    Returns:
      [..., 3] of `dtype`.
    """
    return _standardize(_unit(images, dtype), mean, std, dtype)


def adjust_brightness(image: jax.Array, factor: jax.typing.ArrayLike) -> jax.Array:
    """Scales [S, S, 3] RGB in [0, 1] by `factor` and clips (torchvision adjust_brightness)."""
    return jnp.clip(_blend(image, 0, factor), 0, 1)


def adjust_contrast(image: jax.Array, factor: jax.typing.ArrayLike) -> jax.Array:
    """Blends [S, S, 3] RGB in [0, 1] with its mean gray and clips (torchvision adjust_contrast).

    Factor 0 gives the mean gray, 1 the image, and more than 1 increases the contrast.
    """
    return jnp.clip(_blend(image, jnp.mean(to_gray(image)), factor), 0, 1)


def adjust_saturation(image: jax.Array, factor: jax.typing.ArrayLike) -> jax.Array:
    """Blends [S, S, 3] RGB in [0, 1] with its gray image and clips (torchvision).

    Factor 0 gives the gray image, 1 the image, and more than 1 increases the saturation.
    """
    return jnp.clip(_blend(image, to_gray(image), factor), 0, 1)


def adjust_hue(image: jax.Array, shift: jax.typing.ArrayLike) -> jax.Array:
    """Shifts the hue of [S, S, 3] RGB in [0, 1] in HSV space (torchvision adjust_hue).

    Args:
      image: [S, S, 3] in [0, 1].
      shift: hue shift in turns, -0.5 to 0.5.

    Returns:
      [S, S, 3] in [0, 1], with value and saturation unchanged.
    """
    return jnp.stack([jnp.clip(x, 0, 1) for x in _turn_hue(_planes(image), shift)], axis=-1)


def to_gray(image: jax.Array) -> jax.Array:
    """Returns the luma 0.2989 R + 0.587 G + 0.114 B of [..., 3] as [..., 1] (torchvision)."""
    return _luma(_planes(image))[..., None]


def jitter_order(key: jax.Array, num: int = len(JITTERS)) -> jax.Array:
    """Draws an order of the color changes: a uniform permutation [num] of 0 ... num - 1."""
    return jax.random.permutation(key, num)


def jitter(image: jax.Array, amounts: dict[str, jax.Array], order: jax.Array) -> jax.Array:
    """Applies color changes one after another, clipping to [0, 1] after each.

    Args:
      image: [S, S, 3] in [0, 1].
      amounts: a scalar for some or all of `JITTERS`: a factor, or for hue a shift in turns.
      order: [len(amounts)] permutation: which of `amounts` to apply first, second, ...

    Returns:
      [S, S, 3] in [0, 1].
    """
    index = {name: number for number, name in enumerate(amounts)}
    values = jnp.stack(list(amounts.values()))
    # Three [S, S] planes: several times faster on a CPU than [S, S, 3].
    planes = _planes(image)
    for step in range(len(amounts)):
        chosen = order[step]
        amount = values[chosen]
        # Under vmap each image may be at a different change, so all are computed. Three of them are
        # the same blend with different bases, which leaves two computations instead of four.
        gray = _luma(planes)
        base = jnp.zeros_like(gray)
        if "contrast" in index:
            base = jnp.where(chosen == index["contrast"], jnp.mean(gray), base)
        if "saturation" in index:
            base = jnp.where(chosen == index["saturation"], gray, base)
        blended = [_blend(plane, base, amount) for plane in planes]
        if "hue" in index:
            turned = _turn_hue(planes, amount)
            is_hue = chosen == index["hue"]
            blended = [jnp.where(is_hue, t, b) for t, b in zip(turned, blended, strict=True)]
        planes = [jnp.clip(plane, 0, 1) for plane in blended]
    return jnp.stack(planes, axis=-1)


def gaussian_blur(image: jax.Array, sigma: jax.typing.ArrayLike, kernel_size: int) -> jax.Array:
    """Blurs with a truncated Gaussian and reflected edges (torchvision gaussian_blur).

    Args:
      image: [S, S, 3].
      sigma: standard deviation in pixels, positive.
      kernel_size: odd, less than 2 S.

    Returns:
      [S, S, 3].
    """
    side, radius = image.shape[0], kernel_size // 2
    out, source = jnp.arange(side)[:, None], jnp.arange(side)[None, :]

    def weight(offset):
        return jnp.where(abs(offset) <= radius, jnp.exp(-0.5 * (offset / sigma) ** 2), 0)

    # Two banded matrix products, fast on every accelerator. A source pixel counts again for each
    # of its mirror images (about pixels 0 and S - 1) within the kernel's radius.
    matrix = weight(source - out)
    matrix += jnp.where(source > 0, weight(-source - out), 0)
    matrix += jnp.where(source < side - 1, weight(2 * (side - 1) - source - out), 0)
    matrix = (matrix / jnp.sum(weight(jnp.arange(-radius, radius + 1)))).astype(image.dtype)
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("hi,vj,ijc->hvc", matrix, matrix, image)


def solarize(image: jax.Array) -> jax.Array:
    """Inverts all values of at least 0.5 in [..., 3] RGB in [0, 1] (torchvision solarize)."""
    return jnp.where(image >= 0.5, 1 - image, image)


def kernel_size(side: int) -> int:
    """Returns the blur's kernel size: 2 floor(S / 20) + 1, odd and at least 3 (23 at 224)."""
    return 2 * max(side // 20, 1) + 1


def _augment_one(settings, key: jax.Array, image: jax.Array) -> jax.Array:
    draw_key, order_key = jax.random.split(key)
    # Always nine draws in fixed positions: switching one step off leaves the others unchanged. In
    # float32 for every dtype, so that float64 sees the same views.
    draws = jax.random.uniform(draw_key, (9,), jnp.float32).astype(image.dtype)
    flip, jittered, brightness, contrast, saturation, hue, gray, blurred, sigma = draws

    if settings.flip > 0:
        image = jnp.where(flip < settings.flip, image[:, ::-1], image)
    amounts = {}
    if settings.brightness > 0:
        amounts["brightness"] = _factor(brightness, settings.brightness)
    if settings.contrast > 0:
        amounts["contrast"] = _factor(contrast, settings.contrast)
    if settings.saturation > 0:
        amounts["saturation"] = _factor(saturation, settings.saturation)
    if settings.hue > 0:
        amounts["hue"] = _between(hue, -settings.hue, settings.hue)
    if settings.jitter > 0 and amounts:
        order = jitter_order(order_key, len(amounts))
        image = jnp.where(jittered < settings.jitter, jitter(image, amounts, order), image)
    if settings.gray > 0:
        image = jnp.where(gray < settings.gray, to_gray(image), image)
    if settings.blur > 0:
        width = _between(sigma, settings.min_sigma, settings.max_sigma)
        soft = gaussian_blur(image, width, kernel_size(image.shape[0]))
        image = jnp.where(blurred < settings.blur, soft, image)
    if settings.solarize > 0:
        solarized = jax.random.uniform(jax.random.fold_in(key, _SOLARIZE), (), jnp.float32)
        image = jnp.where(solarized < settings.solarize, solarize(image), image)
    return image


def _factor(draw: jax.Array, strength: float) -> jax.Array:
    return _between(draw, max(0.0, 1 - strength), 1 + strength)


def _between(draw: jax.Array, low: float, high: float) -> jax.Array:
    return low + (high - low) * draw


def _planes(image: jax.Array) -> list[jax.Array]:
    return [image[..., channel] for channel in range(3)]


def _luma(planes: list[jax.Array]) -> jax.Array:
    red, green, blue = planes
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _blend(image: jax.Array, base, factor) -> jax.Array:
    return factor * image + (1 - factor) * base


def _turn_hue(planes: list[jax.Array], shift) -> list[jax.Array]:
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    # Hue in sixths of a turn, measured from the largest channel.
    difference = jnp.where(
        value == red, green - blue, jnp.where(value == green, blue - red, red - green)
    )
    sector = jnp.where(value == red, 0.0, jnp.where(value == green, 2.0, 4.0))
    hue = sector + difference / jnp.where(chroma > 0, chroma, 1) + 6 * shift
    hue -= 6 * jnp.floor(hue / 6)  # `%` is many times slower on a CPU
    # Back to RGB without branches: each channel is a trapezoid over the hue.
    dips = [2 - abs(hue - 3), abs(hue - 2) - 1, abs(hue - 4) - 1]
    return [value - chroma * jnp.clip(dip, 0, 1) for dip in dips]


def _unit(images: jax.Array, dtype) -> jax.Array:
    return images.astype(jnp.promote_types(dtype, jnp.float32)) / 255


def _standardize(images: jax.Array, mean, std, dtype) -> jax.Array:
    shape = (1,) * (images.ndim - 1) + (3,)
    mean, std = (jnp.asarray(values, images.dtype).reshape(shape) for values in (mean, std))
    return ((images - mean) / std).astype(dtype)

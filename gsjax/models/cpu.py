"""Convolution and batch normalisation with backward passes that are fast on CPUs.

XLA's CPU backend computes the weight gradient of a convolution slowly, and JAX's derivative of
batch normalisation walks over the activations more often than needed. `conv_general_dilated` and
`batch_norm_closed_form` compute the same values and gradients as `jax.lax.conv_general_dilated`
and `batch_norm` in less time there; on GPUs and TPUs they have no use.
`tests/benchmarks/step_vs_torch.py` measures what they gain.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

EPSILON = 1e-5  # added to the variance
# Rows of one product of the weight gradient: few enough for the caches, enough to keep the product
# efficient. In images: 2 of 32x32, 8 of 16x16.
GROUP_ROWS = 2048
# XLA is as fast or faster at stride 2 and for smaller outputs than this.
SMALLEST_SIDE = 7
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: lax.ConvDimensionNumbers | None = None,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Convolves lhs [N, H, W, C] with rhs [h, w, C, F] as `jax.lax` does: [N, H', W', F].

    Made for `flax.linen.Conv(conv_general_dilated=...)`, whose arguments it takes; the layout is
    always NHWC and HWIO. Raises NotImplementedError for dilations and feature groups.
    """
    if {*lhs_dilation, *rhs_dilation, feature_group_count} != {1}:
        raise NotImplementedError("the CPU convolution has neither dilations nor feature groups")
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _conv(lhs, rhs, tuple(window_strides), pads, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(images, kernel, strides, padding, precision):
    return lax.conv_general_dilated(
        images, kernel, strides, padding, dimension_numbers=DIMENSIONS, precision=precision
    )


def _conv_forward(images, kernel, strides, padding, precision):
    return _conv(images, kernel, strides, padding, precision), (images, kernel)


def _conv_backward(strides, padding, precision, kept, grad):
    images, kernel = kept

    def of_both(images, kernel):
        return lax.conv_general_dilated(
            images, kernel, strides, padding, dimension_numbers=DIMENSIONS, precision=precision
        )

    images_grad, kernel_grad = jax.vjp(of_both, images, kernel)[1](grad)
    if strides == (1, 1) and min(grad.shape[1:3]) >= SMALLEST_SIDE:
        kernel_grad = _kernel_gradient(images, grad, kernel.shape, padding, precision)
    return images_grad, kernel_grad.astype(kernel.dtype)


_conv.defvjp(_conv_forward, _conv_backward)


def _kernel_gradient(images, grad, kernel_shape, padding, precision):
    """Gradient of the kernel: a sum of matrix products, each of a group of images.

    One side of the product holds the inputs under every horizontal shift, the other the output
    gradient under every vertical one, each row at the input row that it meets. That is less to
    write, and squarer, than all shifts of the inputs on one side (im2col).
    """
    height, width, channels, features = kernel_shape
    count, out_height, out_width, _ = grad.shape
    images = jnp.pad(images, ((0, 0), *padding, (0, 0)))

    def product(images, grad):
        grad = jnp.pad(grad, ((0, 0), (height - 1, height - 1), (0, 0), (0, 0)))
        shifted = [images[:, :, j : j + out_width] for j in range(width)]
        rows = images.shape[1]
        met = [grad[:, height - 1 - i : height - 1 - i + rows] for i in range(height)]
        return lax.dot_general(
            jnp.concatenate(shifted, axis=-1).reshape(-1, width * channels),
            jnp.concatenate(met, axis=-1).reshape(-1, height * features),
            (((0,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.promote_types(grad.dtype, jnp.float32),
        )

    group = min(count, max(1, GROUP_ROWS // (out_height * out_width)))
    whole = count - count % group

    def grouped(x):
        return x[:whole].reshape(-1, group, *x.shape[1:])

    start = product(images[whole:], grad[whole:])
    total, _ = lax.scan(
        lambda total, pair: (total + product(*pair), None), start, (grouped(images), grouped(grad))
    )
    total = total.reshape(width, channels, height, features)
    return total.transpose(2, 0, 1, 3)


def _normalise(x, mean, variance):
    """Returns (x - mean) / std and 1 / std, in float32 at least; statistics [1, ..., 1, C]."""
    inverse = lax.rsqrt(variance + EPSILON)
    return (x.astype(inverse.dtype) - mean) * inverse, inverse


def _per_channel(vector, x):
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def scale_and_shift(
    x: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    relu: bool,
) -> jax.Array:
    """Normalises x [..., C] by statistics [C], then scale [C], bias [C] and, if asked, ReLU."""
    normalised, _ = _normalise(x, _per_channel(mean, x), _per_channel(variance, x))
    y = normalised * _per_channel(scale, x) + _per_channel(bias, x)
    return (jax.nn.relu(y) if relu else y).astype(x.dtype)


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, relu: bool, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalisation in training (Ioffe & Szegedy 2015, algorithm 1), then ReLU if asked.

    Args:
      x: [..., C]; all axes but the last are the batch.
      scale: [C].
      bias: [C].
      relu: whether a ReLU follows.
      axis_name: mapped axis over whose devices the statistics are taken, or None.

    Returns:
      The result [..., C] in x's dtype, the mean [C] and the biased variance [C] of the batch, in
      float32 at least. The variance is the mean of squared distances to the mean: E[x^2] - E[x]^2
      cancels in float32.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = _mean_over_devices(jnp.mean(wide, axes), axis_name)
    squares = jnp.square(wide - _per_channel(mean, x))
    variance = _mean_over_devices(jnp.mean(squares, axes), axis_name)
    return scale_and_shift(x, mean, variance, scale, bias, relu), mean, variance


def _mean_over_devices(x, axis_name):
    return x if axis_name is None else lax.pmean(x, axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm_closed_form(
    x: jax.Array, scale: jax.Array, bias: jax.Array, relu: bool, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`batch_norm` whose backward pass is the closed form and keeps only x and the statistics.

    The gradient of x is that of the sum of all devices' losses, as JAX's `pmean` transposes under
    `jax.shard_map(check_vma=False)`. None flows through the returned mean and variance.
    """
    return batch_norm(x, scale, bias, relu, axis_name)


def _batch_norm_forward(x, scale, bias, relu, axis_name):
    y, mean, variance = batch_norm(x, scale, bias, relu, axis_name)
    return (y, mean, variance), (x, scale, bias, mean, variance)


def _batch_norm_backward(relu, axis_name, kept, grads):
    x, scale, bias, mean, variance = kept
    normalised, inverse = _normalise(x, _per_channel(mean, x), _per_channel(variance, x))
    grad = grads[0].astype(normalised.dtype)
    if relu:
        y = normalised * _per_channel(scale, x) + _per_channel(bias, x)
        grad = jnp.where(y > 0, grad, 0)
    axes = tuple(range(x.ndim - 1))
    bias_grad = jnp.sum(grad, axes)
    scale_grad = jnp.sum(grad * normalised, axes)
    count = x.size // x.shape[-1]
    mean_grad = _mean_over_devices(bias_grad / count, axis_name)
    mean_product = _mean_over_devices(scale_grad / count, axis_name)
    centred = grad - _per_channel(mean_grad, x) - normalised * _per_channel(mean_product, x)
    x_grad = _per_channel(scale, x) * inverse * centred
    return x_grad.astype(x.dtype), scale_grad.astype(scale.dtype), bias_grad.astype(bias.dtype)


batch_norm_closed_form.defvjp(_batch_norm_forward, _batch_norm_backward)

"""Convolution with a weight gradient that is fast on CPUs.

XLA's CPU backend is slow at the weight gradient of a convolution. `conv_general_dilated` computes
the values and gradients of `jax.lax.conv_general_dilated` faster there; on other platforms both
compile to the same program. `tests/benchmarks/step_vs_torch.py` measures the gain.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

# Rows per matrix product of the weight gradient: few enough for the caches, many enough to be
# efficient. That is 2 images of 32x32 or 8 of 16x16.
GROUP_ROWS = 2048
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

    To be passed as `flax.linen.Conv(conv_general_dilated=...)`; the layout is always NHWC and
    HWIO. Raises NotImplementedError for dilations and feature groups.
    """
    if {*lhs_dilation, *rhs_dilation, feature_group_count} != {1}:
        raise NotImplementedError("dilations and feature groups are not supported")
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
    wide = jnp.promote_types(grad.dtype, jnp.float32)

    def convolve(images, kernel):
        return lax.conv_general_dilated(
            images, kernel, strides, padding, dimension_numbers=DIMENSIONS, precision=precision
        )

    images_grad, kernel_grad = jax.vjp(convolve, images, kernel)[1](grad)
    # XLA is as fast or faster at stride 2 and for small outputs.
    if strides == (1, 1) and min(grad.shape[1:3]) >= SMALLEST_SIDE:
        kernel_grad = lax.platform_dependent(
            images,
            grad,
            kernel_grad,
            cpu=lambda x, g, _: _kernel_gradient(x, g, kernel.shape, padding, precision),
            default=lambda _x, _g, plain: plain.astype(wide),
        )
    return images_grad, kernel_grad.astype(kernel.dtype)


_conv.defvjp(_conv_forward, _conv_backward)


def _kernel_gradient(images, grad, kernel_shape, padding, precision):
    """Gradient of the kernel: a sum of matrix products, one per group of images.

    One operand holds the inputs at every horizontal shift, the other the output gradient at every
    vertical shift, its rows aligned with the input rows they multiply. These are smaller and
    squarer than with all shifts of the inputs on one side (im2col).
    """
    height, width, channels, features = kernel_shape
    count, out_height, out_width, _ = grad.shape
    images = jnp.pad(images, ((0, 0), *padding, (0, 0)))

    def product(images, grad):
        grad = jnp.pad(grad, ((0, 0), (height - 1, height - 1), (0, 0), (0, 0)))
        shifted = [images[:, :, j : j + out_width] for j in range(width)]
        rows = images.shape[1]
        aligned = [grad[:, height - 1 - i : height - 1 - i + rows] for i in range(height)]
        return lax.dot_general(
            jnp.concatenate(shifted, axis=-1).reshape(-1, width * channels),
            jnp.concatenate(aligned, axis=-1).reshape(-1, height * features),
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

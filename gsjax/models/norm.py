"""Batch normalization, with a backward pass that is fast on CPUs.

JAX's derivative of batch normalization passes over the activations more often than necessary, and
XLA's CPU backend does not optimize that away. There the closed form replaces it; other platforms
use JAX's derivative.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

EPSILON = 1e-5  # added to the variance
DECAY = 0.9  # of the running statistics; PyTorch's momentum 0.1


def at_least_float32(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """Returns float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


class BatchNorm(nn.Module):
    """Batch normalization, optionally followed by ReLU.

    The variables are those of `flax.linen.BatchNorm`: params `scale` and `bias`, batch_stats `mean`
    and `var` (biased), all [C].

    Attributes:
      dtype: dtype of the result.
      relu: whether a ReLU follows.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      scale_init: initializer of the scale.
      axis_name: mapped axis over whose devices the batch statistics are computed, or None.
    """

    dtype: jax.typing.DTypeLike = jnp.float32
    relu: bool = False
    use_scale: bool = True
    use_bias: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    axis_name: str | None = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalizes x [..., C] with batch statistics in training, else with the running ones."""
        shape, param_dtype = (x.shape[-1],), at_least_float32(self.dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, param_dtype)
        scale, bias = jnp.ones(shape, param_dtype), jnp.zeros(shape, param_dtype)
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, param_dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape, param_dtype)
        x = x.astype(self.dtype)
        if not train:
            mean, var = running_mean.value, running_var.value
            return scale_and_shift(x, mean, var, scale, bias, self.relu)
        # Initialization runs on one device, outside any mapped axis.
        axis_name = None if self.is_initializing() else self.axis_name
        y, mean, var = lax.platform_dependent(
            x,
            scale,
            bias,
            cpu=_branch(batch_norm_closed_form, self.relu, axis_name),
            default=_branch(batch_norm, self.relu, axis_name),
        )
        if not self.is_initializing():
            for running, new in ((running_mean, mean), (running_var, var)):
                running.value = DECAY * running.value + (1 - DECAY) * new
        return y


@functools.cache
def _branch(norm, relu, axis_name):
    """Returns (x, scale, bias) -> `norm`: one function per setting, so JAX traces a shape once."""
    return lambda x, scale, bias: norm(x, scale, bias, relu, axis_name)


def _normalize(x, mean, variance):
    """Returns (x - mean) / std and 1 / std, in at least float32; statistics [1, ..., 1, C]."""
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
    """Normalizes x [..., C] by statistics [C], then applies scale [C], bias [C] and `relu`."""
    normalized, _ = _normalize(x, _per_channel(mean, x), _per_channel(variance, x))
    y = normalized * _per_channel(scale, x) + _per_channel(bias, x)
    return (jax.nn.relu(y) if relu else y).astype(x.dtype)


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, relu: bool, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Training-mode batch normalization (Ioffe & Szegedy 2015, algorithm 1), optional ReLU.

    Args:
      x: [..., C]; all axes but the last are the batch.
      scale: [C].
      bias: [C].
      relu: whether a ReLU follows.
      axis_name: mapped axis over whose devices the statistics are computed, or None.

    Returns:
      The result [..., C] in x's dtype, and the batch's mean [C] and biased variance [C] in at least
      float32. The variance is the mean squared distance to the mean: E[x^2] - E[x]^2 suffers from
      cancellation in float32.
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
    """`batch_norm` with a closed-form backward pass that keeps only x and the statistics.

    The gradient of x is that of the sum of all devices' losses, as JAX's `pmean` transposes under
    `jax.shard_map(check_vma=False)`. No gradient flows through the returned mean and variance.
    """
    return batch_norm(x, scale, bias, relu, axis_name)


def _batch_norm_forward(x, scale, bias, relu, axis_name):
    y, mean, variance = batch_norm(x, scale, bias, relu, axis_name)
    return (y, mean, variance), (x, scale, bias, mean, variance)


def _batch_norm_backward(relu, axis_name, kept, grads):
    x, scale, bias, mean, variance = kept
    normalized, inverse = _normalize(x, _per_channel(mean, x), _per_channel(variance, x))
    grad = grads[0].astype(normalized.dtype)
    if relu:
        y = normalized * _per_channel(scale, x) + _per_channel(bias, x)
        grad = jnp.where(y > 0, grad, 0)
    axes = tuple(range(x.ndim - 1))
    bias_grad = jnp.sum(grad, axes)
    scale_grad = jnp.sum(grad * normalized, axes)
    count = x.size // x.shape[-1]
    mean_grad = _mean_over_devices(bias_grad / count, axis_name)
    mean_product = _mean_over_devices(scale_grad / count, axis_name)
    centered = grad - _per_channel(mean_grad, x) - normalized * _per_channel(mean_product, x)
    x_grad = _per_channel(scale, x) * inverse * centered
    return x_grad.astype(x.dtype), scale_grad.astype(scale.dtype), bias_grad.astype(bias.dtype)


batch_norm_closed_form.defvjp(_batch_norm_forward, _batch_norm_backward)

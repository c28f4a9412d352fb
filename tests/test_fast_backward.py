"""The fast backward passes against JAX's own derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from gsjax.models import convolution, norm

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


def assert_close(actual, expected, dtype):
    """Compares trees; a tolerance is relative to the largest value of each array."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype == dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * np.abs(b).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((5, 32, 32, 3), (3, 3, 3, 4), 1, ((1, 1), (1, 1))),  # groups of 2, one image left
        ((3, 9, 12, 3), (3, 3, 3, 2), 1, ((1, 1), (1, 1))),  # fewer images than a group
        ((2, 10, 9, 2), (2, 3, 2, 3), 1, ((0, 2), (1, 0))),  # nothing symmetric
        ((3, 8, 9, 3), (3, 3, 3, 4), 2, ((1, 1), (1, 1))),
        ((3, 4, 4, 3), (3, 3, 3, 4), 1, ((1, 1), (1, 1))),  # smaller than SMALLEST_SIDE
    ],
)
def test_convolution(shape, kernel, stride, padding, dtype):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=shape), dtype)
        w = jnp.asarray(rng.normal(size=kernel), dtype)
        results = []
        for conv in (convolution.conv_general_dilated, lax.conv_general_dilated):

            def loss(x, w, conv=conv):
                y = conv(x, w, (stride, stride), padding, dimension_numbers=convolution.DIMENSIONS)
                return jnp.sum(jnp.sin(y)), y

            results.append(jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, w))
        assert_close(*results, dtype)


def test_convolution_takes_the_fast_way():
    """Its weight gradient is a scan at stride 1, and XLA's own at stride 2."""

    def primitives(stride):
        def loss(w):
            strides, padding = (stride, stride), ((1, 1), (1, 1))
            return jnp.sum(
                convolution.conv_general_dilated(jnp.ones((2, 16, 16, 3)), w, strides, padding)
            )

        return str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((3, 3, 3, 4))))

    assert "scan[" in primitives(1)
    assert "scan[" not in primitives(2)


def test_convolution_refuses_what_it_does_not_do():
    x, w = jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 1, 2))
    for option in ({"feature_group_count": 2}, {"rhs_dilation": (2, 2)}, {"lhs_dilation": (1, 2)}):
        with pytest.raises(NotImplementedError, match="dilations and feature groups"):
            convolution.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1)), **option)


def batch_norm_inputs(shape, dtype):
    rng = np.random.default_rng(1)
    channels = shape[-1]
    values = (
        rng.normal(1.5, 2.0, shape),
        rng.normal(size=channels),
        rng.normal(size=channels),
        rng.normal(size=shape),
    )
    return [jnp.asarray(v, dtype) for v in values]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(7, 5, 3, 4), (16, 6)])
def test_batch_norm_closed_form(shape, relu, dtype):
    with jax.enable_x64(dtype == "float64"):
        *inputs, weight = batch_norm_inputs(shape, dtype)
        results = []
        for batch_norm in (norm.batch_norm_closed_form, norm.batch_norm):

            def loss(*inputs, batch_norm=batch_norm):
                y, mean, variance = batch_norm(*inputs, relu, None)
                return jnp.sum(jnp.sin(y) * weight), (y, mean, variance)

            results.append(jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs))
        assert_close(*results, dtype)


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_over_four_devices(relu):
    """Gradients of the global batch norm, each device differentiating its local mean loss."""
    with jax.enable_x64(True):
        x, scale, bias, weight = batch_norm_inputs((8, 4, 3, 5), "float64")
        mesh = Mesh(np.array(jax.devices()[:4]), ("batch",), axis_types=(AxisType.Auto,))

        def gradients(batch_norm, axis_name, x, scale, bias, weight):
            def loss(x, scale, bias):
                y, mean, variance = batch_norm(x, scale, bias, relu, axis_name)
                return jnp.mean(jnp.sin(y) * weight), (mean, variance)

            grads, statistics = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
            if axis_name is None:
                return grads, statistics
            # The mean over devices is the loss, so one device's x weighs a quarter.
            return (grads[0] / 4, *lax.pmean(grads[1:], axis_name)), statistics

        expected = gradients(norm.batch_norm, None, x, scale, bias, weight)
        for batch_norm in (norm.batch_norm, norm.batch_norm_closed_form):
            mapped = jax.shard_map(
                functools.partial(gradients, batch_norm, "batch"),
                mesh=mesh,
                in_specs=(P("batch"), P(), P(), P("batch")),
                out_specs=((P("batch"), P(), P()), P()),
                check_vma=False,
            )
            assert_close(jax.jit(mapped)(x, scale, bias, weight), expected, "float64")


def test_batch_norm_keeps_the_variance_of_distant_values():
    """E[x^2] - E[x]^2 would lose it in float32."""
    x = 3000 + np.random.default_rng(2).normal(size=(64, 3)).astype(np.float32)
    _, mean, variance = norm.batch_norm(jnp.asarray(x), jnp.ones(3), jnp.zeros(3), False, None)
    np.testing.assert_allclose(mean, x.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(variance, x.var(0, dtype=np.float64), rtol=1e-4)


def test_batch_norm_in_bfloat16_computes_in_float32():
    *inputs, _ = batch_norm_inputs((32, 4), "float32")
    x = inputs[0].astype(jnp.bfloat16)
    y, mean, variance = norm.batch_norm(x, *inputs[1:], False, None)
    wide = np.asarray(x, np.float64)
    assert y.dtype == jnp.bfloat16
    assert mean.dtype == variance.dtype == jnp.float32
    np.testing.assert_allclose(variance, wide.var(0), rtol=1e-6)
    gradient = jax.grad(
        lambda x: jnp.sum(norm.batch_norm_closed_form(x, *inputs[1:], True, None)[0])
    )
    assert gradient(x).dtype == jnp.bfloat16

"""Every encoder in the table keeps the contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsjax import models
from gsjax.config import defaults
from gsjax.models import ENCODERS

# Of those that have them.
SIZES = {
    "encoder.width": 4,
    "encoder.stem": "cifar",
    "encoder.depth": 1,
    "encoder.patch_size": 8,
}


def create(name, dtype, remat=False):
    config = defaults.get_config()
    config.encoder.name, config.encoder.dtype, config.remat = name, dtype, remat
    for key, value in SIZES.items():
        if key in ENCODERS[name].settings:
            config.update_from_flattened_dict({key: value})
    return models.create_encoder(config)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_and_variables(name, dtype):
    encoder = create(name, dtype)
    images = jnp.zeros((2, 16, 16, 3))

    def run():
        return encoder.init_with_output(jax.random.key(0), images, train=True)

    (pooled, maps), variables = jax.eval_shape(run)
    assert pooled.ndim == 2 and len(pooled) == 2
    assert maps.ndim == 4 and len(maps) == 2 and maps.shape[1] == maps.shape[2] >= 1
    assert pooled.dtype == maps.dtype == jnp.float32
    assert variables.keys() <= {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    with_remat = create(name, dtype, remat=True)
    again = jax.eval_shape(lambda: with_remat.init(jax.random.key(0), images, train=True))
    assert jax.tree.map(lambda x: x.shape, again) == jax.tree.map(lambda x: x.shape, variables)


# One of each kind of block; the others differ in their number.
@pytest.mark.parametrize(
    "name",
    [name for name in ENCODERS if name not in ("resnet34", "resnet101", "vit_small", "vit_base")],
)
def test_an_image_is_encoded_alike_in_any_batch_and_has_a_gradient(name):
    encoder = create(name, "float32")
    if hasattr(encoder, "axis_name"):  # of BatchNorm
        encoder = encoder.clone(axis_name=None)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 16, 3)), jnp.float32)
    variables = jax.jit(lambda key: encoder.init(key, images, train=True))(jax.random.key(0))
    encode = jax.jit(lambda images: encoder.apply(variables, images, train=False))

    def energy(images):
        outputs = encoder.apply(variables, images, train=False)
        return jnp.sum(jnp.square(outputs.pooled)), outputs

    gradient, whole = jax.jit(jax.grad(energy, has_aux=True))(images)
    for column, row in zip(whole, encode(images[1:2]), strict=True):
        np.testing.assert_allclose(column[1:2], row, rtol=1e-4, atol=1e-5)
    assert np.isfinite(gradient).all() and (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()

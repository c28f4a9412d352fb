"""`loss.chunks`: the same step in less memory."""

import jax
import numpy as np
import pytest
from test_step import batch_of, form_of, measures_of, small_config

from gsjax import methods
from gsjax.config import settings
from gsjax.errors import UserError
from gsjax.runtime import parallel
from gsjax.train import optimizers, step
from gsjax.train.pretrain import pretrain

VIT = {"encoder__depth": 2, "encoder__patch_size": 4, "encoder__drop_path": 0.5}


def first_step(config, devices):
    """State and metrics after one step."""
    mesh = parallel.create_mesh(config.batch_size, jax.devices()[:devices])
    optimizer = optimizers.create_optimizer(config, lambda count: 0.1)
    method = methods.create_method(config)
    state = step.create_state_fn(config, method, optimizer, mesh)(jax.random.key(3))
    train_step = step.create_train_step(config, method, optimizer, mesh, 10, 10)
    return jax.device_get(
        train_step(state, parallel.shard(batch_of(config), mesh), jax.random.key(4))
    )


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name == "simclr" else pytest.mark.slow)
        for name in methods.METHODS
    ],
)
def test_neither_chunks_nor_devices_change_a_step(method, x64):
    """With drop path and local views; heads with BatchNorm see the whole batch."""
    measure = measures_of(method)[-1]
    changes = {"crops__local_views": 2, "crops__local_size": 8, **VIT}
    changes["similarity__form"] = form_of(method, measure)
    whole, parts = (
        first_step(
            small_config(method, measure, "sgd", "float64", "vit_tiny", loss__chunks=n, **changes),
            devices,
        )
        for n, devices in ((1, 1), (2, 4))
    )
    (one, _), (other, _) = whole, parts
    # Momentum after one step is the gradient.
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(one.opt_state)) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-9, 1e-9), one, other)


def test_chunks_take_less_memory():
    one_block = {"encoder__depth": 1, "encoder__patch_size": 4}
    config = small_config("simclr", "none", "sgd", "float32", "vit_tiny", **one_block)
    method = methods.create_method(config)
    params, extra = method.init(jax.random.key(0), 16)
    images, keys = jax.numpy.ones((32, 16, 16, 3)), jax.random.split(jax.random.key(1), 32)

    def memory(chunks):
        method.config.loss.chunks = chunks

        def energy(params):
            encoder = {"encoder": params["encoder"]}
            (h,), _ = method.forward(encoder, extra["batch_stats"], images, keys=keys)
            return (h**2).sum()

        compiled = jax.jit(jax.grad(energy)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(8) < 0.4 * memory(1)


def test_encoders_with_batch_norm_are_refused():
    config = settings.load(None)
    settings.override(config, {"loss.chunks": "2"})
    with pytest.raises(UserError) as error:
        settings.check(config)
    assert str(error.value) == (
        "loss.chunks=2 needs an encoder without BatchNorm; resnet18 has statistics of the whole "
        "batch: use remat=true instead"
    )


def test_chunks_that_do_not_divide_the_images_of_a_device_are_refused(tmp_path):
    """Before anything is compiled or drawn; 16 images on all devices."""
    config = small_config(
        "byol", "none", "sgd", "float32", "vit_tiny", loss__chunks=3, data__labeled_split="",
        data__test_split="", **VIT,
    )  # fmt: skip
    local = 16 // jax.device_count()
    with pytest.raises(UserError) as error:
        pretrain(config, str(tmp_path / "run"))
    assert str(error.value) == f"loss.chunks is 3; it must divide the {local} images of a device"
    assert not (tmp_path / "run" / "examples.png").exists()

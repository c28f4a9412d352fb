"""Rematerialization: less memory, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu.metric_writers import MultiWriter
from test_step import batch_of, small_config

from gsjax import methods
from gsjax.config import settings
from gsjax.models import resnet
from gsjax.runtime import checkpoints, files, parallel, saved_state
from gsjax.train import optimizers, step


def configured(remat, method, measure, optimizer, dtype, encoder="resnet18"):
    config = small_config(method, measure, optimizer, dtype)
    settings.override(config, {"remat": str(remat), "encoder.name": encoder})
    return config


def create_method(config):
    """The method with two stages of its encoder, one block each, for the time of compilation."""
    method = methods.create_method(config)
    method.networks["encoder"] = method.networks["encoder"].clone(stage_sizes=(1, 1))
    return method


def first_step(config):
    """The state before and after one step on two devices, its metrics and its memory."""
    mesh = parallel.create_mesh(config.batch_size, jax.devices()[:2])
    optimizer = optimizers.create_optimizer(config, optimizers.create_schedule(config, 10, 10))
    method = create_method(config)
    state = step.create_state_fn(config, method, optimizer, mesh)(jax.random.key(3))
    before = jax.device_get(state)
    batch = parallel.shard(batch_of(config), mesh)
    key = jax.random.key(4)
    compiled = step.create_train_step(config, method, optimizer, mesh, 10, 10)
    compiled = compiled.lower(state, batch, key).compile()
    after, metrics = jax.device_get(compiled(state, batch, key))
    return before, after, metrics, compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("method", "measure", "encoder"),
    [
        ("simclr", "ioa", "resnet18"),
        pytest.param("simsiam", "none", "resnet50", marks=pytest.mark.slow),
    ],
)
def test_a_step_is_the_same_in_less_memory(method, measure, encoder):
    with jax.enable_x64(True):
        plain, remat = (
            first_step(configured(remat, method, measure, "sgd", "float64", encoder))
            for remat in (False, True)
        )
    jax.tree.map(np.testing.assert_array_equal, plain[0], remat[0])
    # The optimizer's state after one step of SGD is the gradient, and the weights' decay.
    gradients = jax.tree.leaves(plain[1].opt_state)
    assert max(np.abs(leaf).max() for leaf in gradients) > 1e-3
    for one, other in zip(plain[1:3], remat[1:3], strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-9, 1e-9), one, other)
    changed = jax.tree.leaves(
        jax.tree.map(lambda a, b: np.any(a != b), plain[0].extra, plain[1].extra)
    )
    assert all(changed)
    assert remat[3] < 0.85 * plain[3]


def test_checkpoints_fit_with_and_without(tmp_path):
    states = []
    for remat in (False, True):
        config = configured(remat, "simsiam", "none", "lars", "float32")
        optimizer = optimizers.create_optimizer(config, lambda count: 0.1)
        method = create_method(config)
        mesh = parallel.create_mesh(config.batch_size, jax.devices()[:1])
        states.append(step.create_state_fn(config, method, optimizer, mesh)(jax.random.key(0)))
    for i, (saved, target) in enumerate((states, states[::-1])):
        folder = files.absolute(str(tmp_path / str(i)))
        checkpoints.Checkpoints(folder, 1, 0).save(1, saved, MultiWriter([]))
        restored = saved_state.read(folder / "checkpoints" / "1", target)
        jax.tree.map(np.testing.assert_array_equal, restored, target)


def test_remat_may_change_on_the_way():
    config = small_config("simclr", "ioa", "sgd", "float32")
    other = config.copy_and_resolve_references()
    settings.override(other, {"remat": "true", "platform": "gpu"})
    assert settings.shaping_differences(config.to_dict(), other.to_dict()) == []


def test_only_training_is_computed_anew():
    config = small_config("simclr", "ioa", "sgd", "float32", "resnet18")
    images = jnp.zeros((2, 16, 16, 3))
    programs = {}
    for remat in (False, True):
        encoder = resnet.create(config.encoder, remat).clone(axis_name=None)
        variables = jax.eval_shape(lambda e=encoder: e.init(jax.random.key(0), images, train=True))
        for train in (False, True):
            programs[remat, train] = str(
                jax.make_jaxpr(
                    lambda v, e=encoder, t=train: e.apply(
                        v, images, train=t, mutable=["batch_stats"]
                    )
                )(variables)
            )
    assert programs[True, False] == programs[False, False]
    assert programs[True, True] != programs[False, True]
    assert programs[True, True].count("prevent_cse=True") == 8  # the blocks of a ResNet-18

"""The data-parallel step: one device and four compute the same function."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsjax import methods
from gsjax.config import settings
from gsjax.crops import Crops
from gsjax.methods import base
from gsjax.runtime import parallel
from gsjax.train import optimizers, step


def measures_of(method):
    """The overlap measures that a method can be trained with, graded last."""
    return ("none", "ioa") if methods.METHODS[method].graded else ("none",)


def form_of(method, measure):
    """DINO's loss has no distance to grade."""
    return "weight" if method == "dino" and measure != "none" else "regress"


AUGMENTED = {"augment__jitter": 0.8, "augment__gray": 0.2, "augment__blur": 0.5}
COMBINATIONS = [(method, measure) for method in methods.METHODS for measure in measures_of(method)]


def small_config(method, measure, optimizer, dtype, encoder="toy", **changes):
    overrides = {
        "method": method,
        "encoder.name": encoder,
        "similarity.measure": measure,
        "optimizer.name": optimizer,
        "encoder.dtype": dtype,
        "encoder.width": "4",
        "projector.hidden_dim": "12",
        "projector.out_dim": "8",
        "predictor.hidden_dim": "6",
        "projector.last_bn": str(method == "simsiam"),
        "queue.size": "96",
        "prototypes.number": "24",
        "prototypes.frozen_epochs": "0",
        "similarity.form": form_of(method, measure),
        "optimizer.fix_pred_lr": str(method == "simsiam"),
        "optimizer.weight_decay": "1e-2",
        "augment.jitter": "0",  # tests/test_augment.py has the augmentations; they compile for long
        "augment.gray": "0",
        "batch_size": "16",
        "data.image_size": "16",
        "schedule.warmup_epochs": "0",
    }
    config = settings.load(None)
    changes = {key.replace("__", "."): str(value) for key, value in changes.items()}
    settings.override(config, overrides | changes)
    return settings.check(config)


def batch_of(config):
    generator = np.random.default_rng(0)

    def crops(num_views, size):
        shape = config.batch_size, num_views
        views = generator.integers(0, 256, (*shape, size, size, 3)).astype(np.uint8)
        return Crops(views, generator.integers(1, 20, (*shape, 4)).astype(np.float32))

    batch = {"global": crops(2, config.data.image_size)}
    if config.crops.local_views:
        batch["local"] = crops(config.crops.local_views, config.crops.local_size)
    return batch


def first_step(config, devices):
    """State and metrics after one step, on the host."""
    mesh = parallel.create_mesh(config.batch_size, jax.devices()[:devices])
    schedule = optimizers.create_schedule(config, 10, 10)
    optimizer = optimizers.create_optimizer(config, schedule)
    method = methods.create_method(config)
    state = step.create_state_fn(config, method, optimizer, mesh)(jax.random.key(3))
    train_step = step.create_train_step(config, method, optimizer, mesh, 10, 10)
    batch = parallel.shard(batch_of(config), mesh)
    state, metrics = train_step(state, batch, jax.random.key(4))
    return jax.device_get((state, metrics))


def check_float64(method, measure, optimizer, encoder, **changes):
    config = small_config(method, measure, optimizer, "float64", encoder, **changes)
    (one, metrics_one), (four, metrics_four) = first_step(config, 1), first_step(config, 4)
    # The state holds the parameters, the statistics and, in the momentum, the gradients.
    leaves = jax.tree.leaves(one)
    assert sum(leaf.dtype == np.float64 for leaf in leaves) > 2 * len(jax.tree.leaves(one.params))
    # Training takes the statistics of the batch: the running ones, 0 and 1 at first, have moved.
    statistics = one.extra["batch_stats"]
    assert not any(np.isin(leaf, (0, 1)).all() for leaf in jax.tree.leaves(statistics))
    for a, b in zip(leaves, jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    for name, value in metrics_one.items():
        np.testing.assert_allclose(value, metrics_four[name], rtol=1e-9, err_msg=name)


MULTI_CROP = {"crops__local_views": 4, "crops__local_size": 8, "crops__min_overlap": 0.3}


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        # Quick: one with a queue, and one with a center that views of a size share.
        pytest.param(method, {}, marks=[] if method in ("mocov2", "dino") else pytest.mark.slow)
        for method in methods.METHODS
    ]
    + [pytest.param("mocov2", {"loss__symmetric": False}, marks=pytest.mark.slow)],
)
def test_four_devices_equal_one_with_local_views(x64, method, changes, monkeypatch):
    """Weighted, whose weights are of all devices; half of the images are monitored."""
    monkeypatch.setattr(base, "MONITORED", 8)
    graded = methods.METHODS[method].graded
    changes = MULTI_CROP | changes | ({"similarity__form": "weight"} if graded else {})
    check_float64(method, measures_of(method)[-1], "lars", "toy", **changes)


@pytest.mark.slow
@pytest.mark.parametrize("method", methods.METHODS)
def test_four_devices_equal_one_in_float64(x64, method):
    check_float64(method, measures_of(method)[-1], "lars", "toy", **AUGMENTED)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "measure"), COMBINATIONS)
def test_four_devices_equal_one_in_float64_with_resnet(x64, method, measure):
    check_float64(method, measure, "sgd", "resnet18")


@pytest.mark.slow
def test_first_loss_of_four_devices_in_float32():
    config = small_config("simclr", "ioa", "lars", "float32", "resnet18")
    (_, one), (_, four) = first_step(config, 1), first_step(config, 4)
    np.testing.assert_allclose(one["loss"], four["loss"], rtol=1e-5)


def test_augmentation_depends_on_the_place_in_the_batch_alone():
    config = small_config("simclr", "ioa", "lars", "float32", **AUGMENTED)
    images, boxes = map(jnp.asarray, batch_of(config)["global"])
    key = jax.random.key(7)

    @jax.jit
    def augment(rows):
        crops = {"global": Crops(images[rows], boxes[rows])}
        return step.augment_views(crops, key, rows, config)["global"]

    whole, part = (augment(rows) for rows in (np.arange(16), np.arange(4, 8)))
    np.testing.assert_allclose(whole[4:8], part, atol=1e-5)
    assert np.abs(whole[:, 0] - whole[:, 1]).max() > 0.1


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(
    ("method", "encoder"),
    [
        ("simclr", "resnet18"),
        ("mocov3", "vit_tiny"),
        *((method, "toy") for method in methods.METHODS),
    ],
)
def test_step_lowers_for_accelerators(method, encoder, platform):
    vit = {"encoder__depth": 1, "encoder__patch_size": 8, "encoder__drop_path": 0.1}
    changes = vit | AUGMENTED
    config = small_config(method, measures_of(method)[-1], "sgd", "bfloat16", encoder, **changes)
    mesh = parallel.create_mesh(config.batch_size, jax.devices()[:4])
    optimizer = optimizers.create_optimizer(config, lambda count: 0.1)
    built = methods.create_method(config)
    state = step.create_state_fn(config, built, optimizer, mesh).eval_shape(jax.random.key(0))
    train_step = step.create_train_step(config, built, optimizer, mesh, 10, 10)
    traced = train_step.trace(state, batch_of(config), jax.eval_shape(lambda: jax.random.key(0)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "all_reduce" in text
    assert "bf16" in text


def test_batch_that_devices_cannot_share_is_refused():
    from gsjax.errors import UserError

    with pytest.raises(UserError, match="batch_size is 18; it must be a multiple of the 4 devices"):
        parallel.create_mesh(18)


DRAWS = """
import jax
from gsjax.config import settings
from gsjax.runtime import parallel
from gsjax.train import step

parallel.start("float32")
config = settings.load(None)
for key in step.keys(config):
    mesh = parallel.create_mesh(4)
    draw = jax.jit(lambda k: jax.random.normal(k, (8,)), out_shardings=parallel.replicated(mesh))
    split = jax.jit(lambda k: jax.random.normal(k, (8,)), out_shardings=jax.NamedSharding(
        mesh, jax.sharding.PartitionSpec("batch")))
    print(draw(key).tolist(), split(key).tolist())
"""


def test_no_variable_changes_the_draws_of_a_seed():
    variables = [
        {},
        {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
        {"JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg", "JAX_THREEFRY_PARTITIONABLE": "0"},
        {"JAX_RANDOM_SEED_OFFSET": "3"},
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DRAWS], env=os.environ | added, stdout=subprocess.PIPE, text=True
        )
        for added in variables
    ]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert printed[0].count("[") == 4
    assert printed[1:] == printed[:1] * 3

"""Every method in the table keeps the contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_diagnostics import slow_ioa
from test_step import batch_of, measures_of, small_config

from gsjax import losses, methods, target_losses
from gsjax.config import settings
from gsjax.methods import METHODS, base
from gsjax.runtime import parallel
from gsjax.train import optimizers, step

# Whose gradient is not that of the loss, because a stop-gradient cuts a branch.
STOPS_GRADIENT = {"simsiam"}
BY_HAND = ("simclr", "simsiam", "mocov2", "byol", "mocov3", "dino")
"""Those whose loss `loss_of_pairs` has; others have theirs in a test of their own."""
EMBEDS = {"dino": 1}
"""The network whose output is compared, if not the last."""
PROGRESS = base.Progress(jnp.zeros((), jnp.int32), 10, 10)


def on_one_device(function, *arguments):
    """Calls what runs inside the mapped program."""
    mesh = parallel.create_mesh(16, jax.devices()[:1])
    specs = jax.sharding.PartitionSpec()
    return parallel.data_parallel(function, mesh, in_specs=specs, out_specs=specs)(*arguments)


@functools.cache
def augmented_views():
    """Those of every method, in float64: the augmentation depends on none."""
    config = small_config("simclr", "none", "sgd", "float64")
    crops, position = batch_of(config), np.arange(config.batch_size)
    augment = jax.jit(lambda key: step.augment_views(crops, key, position, config))
    return augment(jax.random.key(1))


def prepared(method_name, measure, **overrides):
    """(method, params, extra, the loss as a function of params) in float64."""
    config = small_config(method_name, measure, "sgd", "float64")
    changes = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    settings.override(config, changes)
    method = methods.create_method(settings.check(config))
    params, extra = method.init(jax.random.key(0), config.data.image_size)
    views = augmented_views()
    boxes = {"global": batch_of(config)["global"].boxes}
    keys = jax.random.split(jax.random.key(2), config.batch_size)

    def loss(params):
        return method.loss(params, extra, views, boxes, keys, PROGRESS)

    return method, params, extra, loss


def quick_or_slow(name, measure):
    """At once, each method as it is usually trained; its losses alone are in test_losses.py."""
    is_slow = measure != measures_of(name)[-1]
    return pytest.param(name, measure, marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize(
    ("name", "measure"),
    [quick_or_slow(name, measure) for name in METHODS for measure in measures_of(name)],
)
def test_loss_and_its_gradient(x64, name, measure):
    method, params, extra, loss = prepared(name, measure)
    gradient = jax.value_and_grad(loss, has_aux=True)
    (value, (new_extra, metrics)), grads = on_one_device(gradient, params)
    assert value.shape == () and np.isfinite(value)
    assert jax.tree.structure(new_extra) == jax.tree.structure(extra)
    embeddings = metrics.pop("embeddings")
    assert embeddings.shape == (16, 2, 8) and np.isfinite(embeddings).all()
    assert all(np.isfinite(metric) and metric.shape == () for metric in metrics.values())
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path

    # Along a random direction, against the slope of the loss itself.
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)) * 1e-7, params)
    moved = [jax.tree.map(lambda x, d, s=s: x + s * d, params, direction) for s in (1, -1)]
    ahead, behind = (float(on_one_device(loss, where)[0]) for where in moved)
    expected = sum(
        float(np.sum(g * d))
        for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    )
    agrees = abs((ahead - behind) / 2 - expected) < 1e-2 * abs(expected)
    assert agrees == (name not in STOPS_GRADIENT)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.graded])
def test_graded_at_psi_1_has_the_gradient_of_the_baseline(x64, name):
    """At lambda = 0 psi is 1, and half the scale is that of NT-Xent's positive term."""
    scaled = "similarity.scale" in METHODS[name].settings
    overrides = {"similarity__threshold": 0.0} | ({"similarity__scale": 0.5} if scaled else {})
    grads = []
    for measure in ("none", "ioa"):
        _, params, _, loss = prepared(name, measure, **overrides)
        grads.append(on_one_device(jax.grad(loss, has_aux=True), params)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), *grads)


@pytest.mark.parametrize("name", METHODS)
def test_training_starts_from_a_given_encoder(name):
    """And so does the target network where there is one."""
    config = small_config(name, measures_of(name)[-1], "sgd", "float32")
    method, key = methods.create_method(config), jax.random.key(0)
    params, extra = method.init(key, config.data.image_size)
    initial = {"params": params["encoder"], "batch_stats": extra["batch_stats"]["encoder"]}
    given = jax.tree.map(lambda x: x + 1, initial)
    params, extra = method.init(key, config.data.image_size, given)
    online = {"params": params, "batch_stats": extra["batch_stats"]}
    for networks in (online, extra.get("target", online)):
        found = {kind: networks[kind]["encoder"] for kind in given}
        jax.tree.map(np.testing.assert_array_equal, found, given)


def by_hand(method, params, batch_stats, x, train=False):
    """The output of each network, [N, F]."""
    outputs = []
    for name, network in method.networks.items():
        if name in params:
            variables = {"params": params[name], "batch_stats": batch_stats[name]}
            x, _ = network.apply(variables, x, train=train, mutable=["batch_stats"])
            x = x.pooled if name == "encoder" else x
            outputs.append(x)
    return outputs


@pytest.mark.parametrize("name", METHODS)
def test_embedding_and_encoder(x64, name):
    """Targets come from the target network where there is one, and else from the projector."""
    method, params, extra, _ = prepared(name, measures_of(name)[-1])
    if "target" in extra:
        moved = jax.tree.map(lambda x: x + 0.1, extra["target"])
        extra = extra | {"target": moved}
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 16, 3)))
    anchors, targets = method.embed(params, extra, images)
    assert anchors.shape == targets.shape == (3, 8)
    online = {"params": params, "batch_stats": extra["batch_stats"]}
    outputs = by_hand(method, **online, x=images)
    np.testing.assert_allclose(anchors, outputs[EMBEDS.get(name, -1)], atol=1e-12)
    of_target = by_hand(method, **extra.get("target", online), x=images)
    np.testing.assert_allclose(targets, of_target[1], atol=1e-12)
    again = [method.embed(params, extra, images[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(anchors, np.concatenate([a for a, _ in again]), atol=1e-12)
    variables = method.encoder_variables(params, extra)
    outputs = method.networks["encoder"].apply(variables, images, train=False)
    assert outputs.pooled.shape == (3, 4) and outputs.maps.shape == (3, 4, 4, 4)


def of_views(method, params, batch_stats, views, which):
    """The output number `which` of each view, [B, V, F], each with its own pass."""
    passes = [by_hand(method, params, batch_stats, x, train=True) for x in base.each_view(views)]
    return jnp.stack([outputs[which] for outputs in passes], axis=1)


def of_sizes(method, params, batch_stats, views):
    """The last output of each view, [B, V, F]; views of one size share a pass."""
    parts = []
    for part in views.values():
        flat = part.swapaxes(0, 1).reshape(-1, *part.shape[2:])
        z = by_hand(method, params, batch_stats, flat, train=True)[-1]
        parts.append(z.reshape(part.shape[1], len(part), -1).swapaxes(0, 1))
    return jnp.concatenate(parts, axis=1)


def loss_of_pairs(name, method, params, extra, views, psi):
    """The loss from the outputs of every view and hand-made psi."""
    online = {"params": params, "batch_stats": extra["batch_stats"]}
    settings = method.config
    about = {"grading": losses.Grading("weight")}
    if name == "simclr":  # whose views of one size share a pass
        z = of_sizes(method, **online, views=views)
        return losses.contrastive(z, z[:, :2], psi, settings.loss.temperature, **about)
    if name == "simsiam":
        z = of_views(method, **online, views=views, which=1)[:, :2]
        return losses.siamese(of_views(method, **online, views=views, which=-1), z, psi, **about)
    only = {"global": views["global"]}
    targets = of_views(method, **extra["target"], views=only, which=-1)
    anchors = of_views(method, **online, views=views, which=-1)
    if name == "mocov3":
        return target_losses.in_batch_contrastive(
            anchors, targets, psi, settings.loss.temperature, **about
        )
    if name == "dino":  # whose views of one size share a pass
        anchors = of_sizes(method, **online, views=views)
        targets = of_sizes(method, **extra["target"], views=only)
        teacher = target_losses.teacher_probabilities(targets, extra["center"], 0.04)
        return target_losses.distillation(anchors, teacher, psi, 0.1)
    if name == "byol":
        return losses.siamese(anchors, targets, psi, **about)
    v, w = losses.pairs(4, 2)
    if not settings.loss.symmetric:  # only the second view has keys, and no queries
        v, w = np.array([0, 2, 3]), np.array([1, 1, 1])
    rows = [x.reshape(-1, *x.shape[2:]) for x in (anchors[:, v], targets[:, w], psi[:, v, w])]
    return losses.momentum_contrastive(
        rows[0], rows[1], extra["queue"], rows[2], settings.loss.temperature, **about
    )


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, {}) for name in BY_HAND), ("mocov2", {"loss__symmetric": False})]
)
def test_every_view_is_an_anchor_and_the_global_ones_are_targets(x64, name, changes):
    config = small_config(
        name, measures_of(name)[-1], "sgd", "float64",
        **{"similarity__form": "weight", "crops__local_views": 2, "crops__local_size": 8} | changes,
    )  # fmt: skip
    method = methods.create_method(config)
    params, extra = method.init(jax.random.key(0), config.data.image_size)
    batch = batch_of(config)
    generator = np.random.default_rng(0)
    views = {n: jnp.asarray(generator.normal(size=part.images.shape)) for n, part in batch.items()}
    boxes = {name: jnp.asarray(part.boxes) for name, part in batch.items()}
    keys = jax.random.split(jax.random.key(2), config.batch_size)
    everywhere = np.concatenate([part.boxes for part in batch.values()], axis=1)
    psi = np.array([
        [[min(slow_ioa(a, b) / 0.5, 1) for b in of_image[:2]] for a in of_image]
        for of_image in everywhere
    ])  # fmt: skip

    def loss(params):
        return method.loss(params, extra, views, boxes, keys, PROGRESS)[0]

    def expected(params):
        return loss_of_pairs(name, method, params, extra, views, jnp.asarray(psi))

    np.testing.assert_allclose(
        on_one_device(loss, params), on_one_device(expected, params), rtol=1e-6
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_leaf_is_the_same_on_all_devices(name):
    """`check_vma=False` never looks."""
    config = small_config(name, measures_of(name)[-1], "sgd", "float32")
    mesh = parallel.create_mesh(config.batch_size, jax.devices()[:4])
    method = methods.create_method(config)
    schedule = optimizers.create_schedule(config, 20, 20)
    optimizer = optimizers.create_optimizer(config, schedule, method.param_groups)
    state = step.create_state_fn(config, method, optimizer, mesh)(jax.random.key(0))
    train_step = step.create_train_step(config, method, optimizer, mesh, 20, 20)
    batch = parallel.shard(batch_of(config), mesh)
    for _ in range(20):
        state, _ = train_step(state, batch, jax.random.key(1))
    assert int(state.step) == 20 and bool(state.finite)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        first, *others = (np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards)
        assert len(others) == 3 and all(other == first for other in others), path

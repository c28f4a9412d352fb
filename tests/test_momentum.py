"""Target networks and the queue of MoCo v2 and BYOL, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_methods import augmented_views, on_one_device, prepared
from test_step import batch_of, small_config

from gsjax import losses, methods
from gsjax.config import settings
from gsjax.errors import UserError
from gsjax.methods import target_network
from gsjax.methods.base import Progress
from gsjax.methods.mocov2 import enqueued
from gsjax.runtime import parallel
from gsjax.train import optimizers, step

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-15)


def configured(method, **overrides):
    config = small_config(method, "ioa", "sgd", "float64")
    changes = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    settings.override(config, changes)
    return settings.check(config)


def test_the_momentum_is_constant_or_rises_along_a_cosine():
    progress = [Progress(jnp.asarray(k), 40, 10) for k in range(40)]
    constant = configured("mocov2", target__momentum=0.9).target
    moments = [float(target_network.momentum(constant, p)) for p in progress]
    assert moments == pytest.approx([0.9] * 40)
    rising = configured("byol", target__momentum=0.9, target__final_momentum=0.96).target
    expected = [0.96 - 0.06 * (1 + np.cos(np.pi * k / 40)) / 2 for k in range(40)]
    moments = [float(target_network.momentum(rising, p)) for p in progress]
    assert moments == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "delay"),
    # MoCo v3 moves its key network before the next forward pass, with that step's momentum.
    [("mocov2", 0), ("byol", 0), ("mocov3", 1), ("dino", 0)],
)
def test_the_target_follows_the_updated_parameters(x64, name, delay):
    """Parameters move after the optimizer's step; statistics are the target's own."""
    config = configured(name, target__momentum=0.6, target__final_momentum=0.8)
    mesh = parallel.create_mesh(config.batch_size, jax.devices()[:1])
    method = methods.create_method(config)
    optimizer = optimizers.create_optimizer(config, lambda count: 0.1)
    state = step.create_state_fn(config, method, optimizer, mesh)(jax.random.key(3))
    networks = set(state.extra["target"]["params"])
    assert networks == {"encoder", "projector"} | ({"prototypes"} if name == "dino" else set())
    for part in networks:  # it starts as a copy
        jax.tree.map(
            np.testing.assert_array_equal, state.extra["target"]["params"][part], state.params[part]
        )
    train_step = step.create_train_step(config, method, optimizer, mesh, 5, 5)
    batch = parallel.shard(batch_of(config), mesh)
    expected = jax.device_get(state.extra["target"]["params"])
    for k in range(3):
        before = jax.device_get(state.extra["target"]["batch_stats"])
        state, _ = train_step(state, batch, jax.random.key(4))
        m = 0.8 - 0.2 * (1 + np.cos(np.pi * (k + delay) / 5)) / 2
        online = {part: state.params[part] for part in networks}
        expected = jax.tree.map(lambda t, o, m=m: m * t + (1 - m) * np.asarray(o), expected, online)
        after = jax.device_get(state.extra["target"])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), after["params"], expected
        )
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after["batch_stats"], before)
        assert min(jax.tree.leaves(moved)) > 0
    statistics = state.extra["batch_stats"]["encoder"]
    apart = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), after["batch_stats"]["encoder"], statistics
    )
    assert min(jax.tree.leaves(apart)) > 0


@pytest.mark.parametrize("devices", [1, 4])
def test_the_queue_takes_the_keys_in_order_and_wraps(devices):
    """View by view, in the order of the global batch, from the first row on."""
    mesh = parallel.create_mesh(8, jax.devices()[:devices])
    specs = jax.sharding.PartitionSpec
    run = parallel.data_parallel(
        lambda queue, first, second, step: enqueued(queue, [first, second], step),
        mesh, in_specs=(specs(), specs("batch"), specs("batch"), specs()), out_specs=specs(),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    queue = rng.normal(size=(48, 3)).astype(np.float32)
    expected, start = queue.copy(), 0
    for number in range(7):
        views = rng.normal(size=(2, 8, 3)).astype(np.float32)
        for row in views.reshape(16, 3):
            expected[start % 48] = row
            start += 1
        queue = run(queue, *views, jnp.asarray(number))
        np.testing.assert_array_equal(queue, expected)


def test_the_queue_starts_as_random_unit_rows(x64):
    _, _, extra, _ = prepared("mocov2", "ioa")
    queue = np.asarray(extra["queue"])
    assert queue.shape == (96, 8)
    np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, rtol=1e-6)
    assert np.abs(queue.mean(axis=0)).max() < 0.15 and np.abs(queue @ queue.T).mean() < 0.4


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("measure", ["none", "ioa"])
def test_mocov2_compares_with_the_queue_as_it_was(x64, measure, symmetric):
    """One step by hand, from the networks' outputs."""
    method, params, extra, loss = prepared("mocov2", measure, loss__symmetric=symmetric)
    views, config = augmented_views()["global"], method.config
    psi = np.asarray(method.psi({"global": batch_of(config)["global"].boxes}), np.float64)

    def outputs(params):
        stats, target = extra["batch_stats"], extra["target"]["batch_stats"]
        q, k = [], []
        for view in range(2):
            if symmetric or view == 0:
                (_, z), stats = method.forward(params, stats, views[:, view])
                q.append(losses.normalize(z))
            if symmetric or view == 1:
                (_, z), target = method.forward(params, target, views[:, view])
                k.append(losses.normalize(z))
        return q, k, target

    q, k, target = on_one_device(outputs, params)
    (value, (new, _)) = on_one_device(loss, params)
    pairs = [(0, 0, 1, 1), (1, 1, 0, 0)] if symmetric else [(0, 0, 0, 1)]
    tau, terms = config.loss.temperature, []
    for i, v, j, w in pairs:
        for n in range(16):
            anchor, key = q[i][n], k[j][n]
            logits = np.concatenate([[anchor @ key], extra["queue"] @ anchor]) / tau
            distance = np.linalg.norm(anchor - key)
            positive = -logits[0]
            if measure == "ioa":
                positive = (distance - (1 - psi[n, v, w])) ** 2 / tau
            terms.append(positive + np.log(np.sum(np.exp(logits))))
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-9)
    rows = np.concatenate(k)
    np.testing.assert_allclose(new["queue"][: len(rows)], rows, atol=1e-12)
    np.testing.assert_array_equal(new["queue"][len(rows) :], extra["queue"][len(rows) :])
    jax.tree.map(assert_close, new["target"]["batch_stats"], target)


@pytest.mark.parametrize(
    ("measure", "form"), [("none", "mse"), ("none", "cosine"), ("none", "sum"), ("ioa", "mse")]
)
def test_byol_compares_predictions_with_the_other_views_target(x64, measure, form):
    """One step by hand, from the networks' outputs."""
    method, params, extra, loss = prepared("byol", measure, loss__siamese=form)
    views = augmented_views()["global"]
    psi = np.float64(method.psi({"global": batch_of(method.config)["global"].boxes}))

    def outputs(params):
        stats, target = extra["batch_stats"], extra["target"]["batch_stats"]
        p, t = [], []
        for view in range(2):
            (*_, prediction), stats = method.forward(params, stats, views[:, view])
            (_, z), target = method.forward(extra["target"]["params"], target, views[:, view])
            p.append(losses.normalize(prediction))
            t.append(losses.normalize(z))
        return p, t, target

    p, t, target = on_one_device(outputs, params)
    (value, (new, _)) = on_one_device(loss, params)
    terms = []
    for v, w in ((0, 1), (1, 0)):
        for n in range(16):
            distance = np.linalg.norm(p[v][n] - t[w][n])
            wanted = 1 - psi[n, v, w] if measure == "ioa" else 0
            terms.append(-(p[v][n] @ t[w][n]) if form == "cosine" else (distance - wanted) ** 2)
    expected = np.mean(terms) * (2 if form == "sum" else 1)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    jax.tree.map(assert_close, new["target"]["batch_stats"], target)


def test_a_queue_that_steps_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"queue.size is 48; it must be a multiple of the 32 keys"):
        configured("mocov2", queue__size=48)
    configured("mocov2", queue__size=48, loss__symmetric="false")
    keys = [jax.ShapeDtypeStruct((8, 3), "float32")] * 3
    mesh = parallel.create_mesh(8, jax.devices()[:1])
    specs = jax.sharding.PartitionSpec()
    run = parallel.data_parallel(enqueued, mesh, in_specs=specs, out_specs=specs)
    with pytest.raises(ValueError, match="64 rows are no multiple of the 24 keys"):
        jax.eval_shape(run, jax.ShapeDtypeStruct((64, 3), "float32"), keys, 0)


def test_byol_has_no_scale():
    with pytest.raises(UserError, match="similarity.scale is 0.5, but BYOL has no such scale"):
        configured("byol", similarity__scale=0.5)

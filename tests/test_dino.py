"""DINO's teacher, center, schedules and frozen prototypes, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_methods import augmented_views, on_one_device
from test_step import batch_of, small_config

from gsjax import methods
from gsjax.config import settings
from gsjax.errors import UserError
from gsjax.methods import base, dino
from gsjax.models.heads import GELUProjector, Prototypes
from gsjax.runtime import parallel
from gsjax.train import optimizers, step


def configured(dtype="float32", **changes):
    return small_config("dino", "none", "sgd", dtype, **changes)


@pytest.mark.parametrize(("epochs", "first"), [(0, 0.07), (1, 0.01), (3, 0.04)])
def test_the_teachers_temperature(epochs, first):
    """As np.linspace over the epochs of the warmup (main_dino.py)."""
    config = configured(
        loss__teacher_temperature=0.07,
        loss__first_teacher_temperature=first,
        loss__teacher_warmup_epochs=epochs,
    )
    method = methods.create_method(config)
    expected = [*np.linspace(first, 0.07, epochs), *[0.07] * (6 - epochs)]
    for k in range(12):
        progress = base.Progress(jnp.asarray(k), 12, 2)
        found = float(method.teacher_temperature(progress))
        assert found == pytest.approx(expected[k // 2], rel=1e-6)


def scores_by_hand(method, params, batch_stats, images):
    """Scores of both views, which share a pass, [B, 2, K]."""
    x = images.swapaxes(0, 1).reshape(-1, *images.shape[2:])
    for name, network in method.networks.items():
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        x, _ = network.apply(variables, x, train=True, mutable=["batch_stats"])
        x = x.pooled if name == "encoder" else x
    return x.reshape(2, len(images), -1).swapaxes(0, 1)


def test_the_center_follows_after_the_loss(x64):
    """The loss uses the old center: loop over pairs, then c = m c + (1 - m) mean(scores)."""
    config = configured("float64", prototypes__center_momentum=0.8)
    method = methods.create_method(config)
    params, extra = method.init(jax.random.key(0), 16)
    center = np.linspace(-0.1, 0.1, 24)
    moved = jax.tree.map(lambda x: x * 1.1, extra["target"]["params"])
    extra = extra | {"center": jnp.asarray(center), "target": extra["target"] | {"params": moved}}
    views, boxes = augmented_views(), {"global": batch_of(config)["global"].boxes}
    keys = jax.random.split(jax.random.key(2), 16)

    def run(params):
        progress = base.Progress(jnp.zeros((), jnp.int32), 10, 10)
        return method.loss(params, extra, views, boxes, keys, progress)

    loss, (new, metrics) = on_one_device(run, params)

    def by_hand(params):
        teacher = scores_by_hand(method, moved, extra["target"]["batch_stats"], views["global"])
        student = scores_by_hand(method, params, extra["batch_stats"], views["global"])
        return student, teacher

    # BatchNorm averages over the devices, which needs the mapped axis.
    student, teacher = (np.asarray(x) for x in on_one_device(by_hand, params))
    losses, each = [], []
    for b in range(16):
        for w in (0, 1):
            t = np.exp((teacher[b, w] - center) / 0.04)
            t /= t.sum()
            s = student[b, 1 - w] / 0.1
            losses.append(-np.sum(t * (s - np.log(np.exp(s).sum()))))
            each.append(t)
    # The temperature is a float32, as every schedule.
    assert loss == pytest.approx(np.mean(losses), rel=1e-7)
    np.testing.assert_allclose(
        new["center"], 0.8 * center + 0.2 * teacher.mean(axis=(0, 1)), atol=1e-12
    )
    entropy = np.mean([-np.sum(t * np.log(t)) for t in each]) / np.log(24)
    assert metrics["teacher_entropy"] == pytest.approx(entropy, rel=1e-6)
    mean = np.mean(each, axis=0)
    expected = -np.sum(mean * np.log(mean)) / np.log(24)
    assert metrics["mean_teacher_entropy"] == pytest.approx(expected, rel=1e-6)


def test_entropies_of_both_collapses():
    uniform, same = jnp.full((4, 2, 8), 1 / 8), jnp.tile(jnp.eye(8)[3], (4, 2, 1))
    spread = jnp.eye(8).reshape(4, 2, 8)
    for p, expected in ((uniform, (1, 1)), (same, (0, 0)), (spread, (0, 1))):
        found = on_one_device(dino.entropies, p)
        values = found["teacher_entropy"], found["mean_teacher_entropy"]
        np.testing.assert_allclose(values, expected, atol=1e-6)


def test_the_teacher_is_evaluated():
    method = methods.create_method(configured())
    params, extra = method.init(jax.random.key(0), 16)
    marked = jax.tree.map(lambda x: x + 1, extra["target"])
    variables = method.encoder_variables(params, extra | {"target": marked})
    jax.tree.map(np.testing.assert_array_equal, variables["params"], marked["params"]["encoder"])


def test_groups():
    """Vectors do not decay; the prototypes start late; what the encoder froze stays frozen."""
    config = configured()
    with config.unlocked():
        config.encoder.name, config.encoder.depth = "vit_tiny", 1
        config.encoder.positions, config.encoder.freeze_patches = "sincos", True
    method = methods.create_method(config)
    params, _ = jax.eval_shape(lambda: method.init(jax.random.key(0), 16))
    labels = method.param_groups(params)
    assert labels["prototypes"] == {"directions": "late"}
    assert labels["encoder"]["pos_embed"] == "frozen"
    assert set(labels["encoder"]["patch_embed_proj"].values()) == {"frozen"}
    assert labels["encoder"]["cls_token"] == "default"
    assert labels["encoder"]["norm"] == {"scale": "no_decay", "bias": "no_decay"}
    assert labels["projector"]["linear1"] == {"kernel": "default", "bias": "no_decay"}


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_prototypes_skip_their_whole_update(name, x64):
    """Neither decay, nor momentum, nor Adam's count; then as an optimizer that starts there."""
    config = configured(
        optimizer__name=name, optimizer__weight_decay=0.1, prototypes__frozen_epochs=1.5
    )
    assert methods.create_method(config).late_epochs == 1.5

    def rate(count):
        return 0.1 * (count + 1)

    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(3, 2))), "b": jnp.asarray(rng.normal(size=(3, 2)))}
    grads = [
        {name: jnp.asarray(rng.normal(size=(3, 2))) for name in params} for _ in range(5)
    ]  # fmt: skip
    late = optimizers.create_optimizer(
        config, rate, lambda _: {"a": "default", "b": "late"}, late_steps=2
    )
    state, now = late.init(params), params
    for k, grad in enumerate(grads):
        updates, state = late.update(grad, state, now)
        now = optax.apply_updates(now, updates)
        if k < 2:
            np.testing.assert_array_equal(now["b"], params["b"])
    alone = optimizers.create_optimizer(config, lambda count: rate(count + 2))
    state, expected = alone.init(params["b"]), params["b"]
    for grad in grads[2:]:
        updates, state = alone.update(grad["b"], state, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(now["b"], expected, atol=1e-12)
    plain = optimizers.create_optimizer(config, rate)
    state, expected = plain.init(params["a"]), params["a"]
    for grad in grads:
        updates, state = plain.update(grad["a"], state, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(now["a"], expected, atol=1e-12)


def test_the_step_freezes_prototypes_for_whole_epochs():
    """Through the step, as the job `pretrain` counts them: 1 epoch of 2 steps."""
    config = configured(prototypes__frozen_epochs=1)
    mesh = parallel.create_mesh(config.batch_size, jax.devices()[:1])
    method = methods.create_method(config)
    optimizer = optimizers.create_optimizer(
        config, lambda count: 0.1, method.param_groups, late_steps=round(method.late_epochs * 2)
    )
    state = step.create_state_fn(config, method, optimizer, mesh)(jax.random.key(0))
    train_step = step.create_train_step(config, method, optimizer, mesh, 4, 2)
    batch, moved = parallel.shard(batch_of(config), mesh), []
    for _ in range(4):
        before = np.asarray(state.params["prototypes"]["directions"])
        state, _ = train_step(state, batch, jax.random.key(1))
        moved.append(bool(np.any(before != state.params["prototypes"]["directions"])))
    assert moved == [False, False, True, True]


def test_gradients_are_clipped_one_by_one():
    """As clip_gradients of DINO's utils.py."""
    rng = np.random.default_rng(0)
    grads = {name: rng.normal(size=(4, 3)) * size for name, size in (("a", 1), ("b", 0.01))}
    clipped, _ = optimizers.clip_each(0.5).update(grads, optax.EmptyState())
    for name, grad in grads.items():
        norm = np.linalg.norm(grad)
        expected = grad * min(0.5 / (norm + 1e-6), 1)
        np.testing.assert_allclose(clipped[name], expected, rtol=1e-5)
    np.testing.assert_allclose(clipped["b"], grads["b"], rtol=1e-6)
    config = configured(optimizer__clip=0.5, optimizer__weight_decay=0, optimizer__momentum=0)
    optimizer = optimizers.create_optimizer(
        config, lambda count: 1.0, lambda p: {**p, "a": "default", "b": "default"}
    )
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_allclose(updates["a"], -clipped["a"], rtol=1e-5)


def test_prototypes_have_unit_length_unless_it_is_trained():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
    for unit in (True, False):
        head = Prototypes(7, unit)
        scores, variables = head.init_with_output(jax.random.key(0), z, train=True)
        directions = np.asarray(variables["params"]["directions"])
        assert np.abs(directions).max() <= 6**-0.5
        w = directions / np.linalg.norm(directions, axis=0)
        u = z / np.linalg.norm(z, axis=1, keepdims=True)
        np.testing.assert_allclose(scores, u @ w, atol=1e-6)
        assert ("length" in variables["params"]) == (not unit)
        if not unit:
            length = jnp.arange(7.0)[None]
            params = variables["params"] | {"length": length}
            again = head.apply({"params": params}, z, train=True)
            np.testing.assert_allclose(again, u @ w * length, atol=1e-5)


def test_the_projector_is_an_mlp_with_gelu():
    from scipy.special import erf

    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    head = GELUProjector(3, 8, 4)
    z, variables = head.init_with_output(jax.random.key(0), x, train=True)
    kernels = [variables["params"][f"linear{i}"]["kernel"] for i in (1, 2, 3)]
    assert 0.01 < np.std(kernels[0]) < 0.03
    for i, kernel in enumerate(kernels):
        x = x @ np.asarray(kernel)
        x = x * (1 + erf(x / 2**0.5)) / 2 if i < 2 else x
    np.testing.assert_allclose(z, x, atol=1e-6)


def test_the_projector_normalizes_before_each_gelu_if_asked():
    from scipy.special import erf

    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    head = GELUProjector(3, 8, 4, hidden_bn=True, axis_name=None)
    variables = head.init(jax.random.key(0), x, train=False)
    z, stats = head.apply(variables, x, train=True, mutable=["batch_stats"])
    for i in (1, 2):
        x = x @ np.asarray(variables["params"][f"linear{i}"]["kernel"])
        running = stats["batch_stats"][f"bn{i}"]["mean"]
        np.testing.assert_allclose(running, 0.1 * x.mean(0), atol=1e-6)
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        x = x * (1 + erf(x / 2**0.5)) / 2
    x = x @ np.asarray(variables["params"]["linear3"]["kernel"])
    np.testing.assert_allclose(z, x, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"similarity__measure": "ioa"},
            "similarity.form=regress grades a distance, which DINO's loss does not have; set "
            "similarity.form=weight or similarity.measure=none",
        ),
        (
            {"loss__first_teacher_temperature": 0.02},
            "loss.first_teacher_temperature is 0.02, but loss.teacher_warmup_epochs is 0; set it, "
            "or make the two temperatures equal",
        ),
        (
            {"loss__teacher_warmup_epochs": 3, "num_steps": 0, "num_epochs": 3},
            "loss.teacher_warmup_epochs is 3; it must be less than num_epochs=3",
        ),
        (
            {"prototypes__frozen_epochs": 4, "num_steps": 0, "num_epochs": 3},
            "prototypes.frozen_epochs is 4; it must be less than num_epochs=3",
        ),
        (
            {"projector__last_bn": True},
            "projector.last_bn is true, but DINO's last layer has no BN; set it to false",
        ),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(UserError) as error:
        settings.check(configured(**changes))
    assert str(error.value) == message

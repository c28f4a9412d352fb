"""Schedules, LARS, SGD and AdamW against their formulas in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gsjax.config import defaults
from gsjax.errors import UserError
from gsjax.methods.simsiam import SimSiam
from gsjax.train import optimizers


def make_config(**settings):
    config = defaults.get_config()
    config.num_steps = 0
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in settings.items()})
    return config


@pytest.mark.parametrize(("scaling", "rate"), [("linear", 1.2), ("sqrt", 0.6), ("none", 0.3)])
def test_learning_rate_scaling(scaling, rate):
    config = make_config(batch_size=1024, optimizer__scaling=scaling)
    assert optimizers.scaled_learning_rate(config) == pytest.approx(rate)


def formula(rate, k, warm, steps, end):
    if k < warm:
        return rate * k / warm
    return end + (rate - end) * (1 + math.cos(math.pi * (k - warm) / (steps - warm))) / 2


@pytest.mark.parametrize(
    ("settings", "steps", "per_epoch", "warm"),
    [
        ({}, 200, 7, 70),
        ({"schedule__warmup_epochs": 2.5}, 200, 7, 18),
        ({"schedule__warmup_epochs": 0.0}, 50, 7, 0),
        ({"num_steps": 45}, 45, 7, 4),  # a tenth
        ({"num_steps": 45, "schedule__warmup_epochs": 1.0}, 45, 3, 3),  # less than a tenth
        ({"num_steps": 5}, 5, 7, 0),
        ({"schedule__final_learning_rate": 0.1}, 200, 7, 70),
        ({"schedule__final_learning_rate": 0.1, "schedule__warmup_epochs": 0.0}, 50, 7, 0),
    ],
)
def test_schedule(settings, steps, per_epoch, warm):
    config = make_config(batch_size=512, **settings)
    schedule = optimizers.create_schedule(config, steps, per_epoch)
    actual = [float(schedule(k)) for k in range(steps + 1)]
    end = config.schedule.final_learning_rate  # not scaled, as the rate is
    expected = [formula(0.6, k, warm, steps, end) for k in range(steps + 1)]
    np.testing.assert_allclose(actual, expected, atol=2e-7)


@pytest.mark.parametrize("steps", [70, 69])
def test_warm_up_longer_than_the_run_is_the_users_mistake(steps):
    with pytest.raises(UserError, match=rf"warmup_epochs=10 is 70 steps.* only {steps}.*lower it"):
        optimizers.create_schedule(make_config(), steps, 7)


def run(optimizer, params, gradients):
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def example(steps=5):
    rng = np.random.default_rng(0)
    shapes = {
        "encoder": {"kernel": (3, 3, 2, 4), "scale": (4,), "zero": (2, 2)},
        "projector": {"kernel": (4, 5), "bias": (5,)},
        "predictor": {"kernel": (5, 4), "bias": (4,)},
    }

    def draw():
        return jax.tree.map(
            lambda shape: rng.normal(size=shape), shapes, is_leaf=lambda x: isinstance(x, tuple)
        )

    params, gradients = draw(), [draw() for _ in range(steps)]
    params["encoder"]["zero"][:] = 0  # a norm of 0: trust 1
    return params, gradients


RATES = [0.0, 0.4, 0.8, 0.3, 0.1]


def schedule_of_rates(step):
    return jnp.asarray(RATES)[step]


def expected(params, gradients, update, fixed_rate=None):
    """Applies update(w, v, g, rate) -> (w, v) to each array, step after step.

    A state v that is not an array starts as 0.
    """

    def one(path, w, *gradients):
        v = 0.0
        for rate, g in zip(RATES, gradients, strict=True):
            if fixed_rate is not None and path[0].key == "predictor":
                rate = fixed_rate
            w, v = update(w, v, g, rate)
        return w

    return jax.tree_util.tree_map_with_path(one, params, *gradients)


def lars(w, v, g, rate, weight_decay=0.01, trust_coefficient=0.05):
    """google-research/simclr, lars_optimizer.py, as the facts of the protocol state it."""
    trust = 1.0
    if w.ndim > 1:
        g = g + weight_decay * w
        norms = np.linalg.norm(w), np.linalg.norm(g)
        trust = trust_coefficient * norms[0] / norms[1] if min(norms) > 0 else 1.0
    v = 0.9 * v + rate * trust * g
    return w - v, v


def sgd(w, v, g, rate, weight_decay=0.01):
    """torch.optim.SGD: the rate outside of the momentum, decay of everything."""
    v = 0.9 * v + g + weight_decay * w
    return w - rate * v, v


def adamw(w, state, g, rate, weight_decay=0.01):
    """Algorithm 2 of arXiv:1711.05101 as in torch.optim.AdamW, which decays everything."""
    m, v, step = state or (0, 0, 0)
    m, v, step = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2, step + 1
    turn = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
    return w - rate * turn - rate * weight_decay * w, (m, v, step)


@pytest.mark.parametrize("fix_pred_lr", [False, True])
@pytest.mark.parametrize(("name", "update"), [("lars", lars), ("sgd", sgd), ("adamw", adamw)])
def test_optimizer_against_numpy(name, update, fix_pred_lr):
    with jax.enable_x64(True):
        config = make_config(
            optimizer__name=name,
            optimizer__weight_decay=0.01,
            optimizer__trust_coefficient=0.05,
            optimizer__beta2=0.95,
            optimizer__learning_rate=0.6,  # 0.3 at the batch size of 128
            optimizer__fix_pred_lr=fix_pred_lr,
        )
        params, gradients = example()
        groups = SimSiam({}, config).param_groups
        optimizer = optimizers.create_optimizer(config, schedule_of_rates, groups)
        actual = run(optimizer, params, gradients)
        reference = expected(params, gradients, update, 0.3 if fix_pred_lr else None)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), actual, reference)


def test_golden_bias_update():
    """With optax's default masks it would be -0.001."""
    config = make_config(optimizer__weight_decay=0.0)
    optimizer = optimizers.create_optimizer(config, lambda step: 1.0)
    params = {"encoder": {"bias": jnp.ones(3)}}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["encoder"]["bias"], -1.0)


def test_lars_with_the_rate_after_the_momentum():
    def official(w, v, g, rate):
        step, v = lars(w, v, g, 1.0)
        return w - rate * v, v

    with jax.enable_x64(True):
        config = make_config(
            optimizer__weight_decay=0.01, optimizer__trust_coefficient=0.05,
            optimizer__rate_after_momentum=True,
        )  # fmt: skip
        params, gradients = example()
        optimizer = optimizers.create_optimizer(config, schedule_of_rates)
        actual = run(optimizer, params, gradients)
        reference = expected(params, gradients, official)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), actual, reference)


@pytest.mark.parametrize(("final", "last"), [(0.0, 0.04), (0.4, 0.4)])
def test_weight_decay_moves_to_its_final_value(final, last):
    config = make_config(optimizer__weight_decay=0.04, schedule__final_weight_decay=final)
    decay = optimizers.create_weight_decay(config, 50)
    for k in range(51):
        now = float(decay(k)) if final else decay
        assert now == pytest.approx(last - (last - 0.04) * (1 + math.cos(math.pi * k / 50)) / 2)


@pytest.mark.parametrize(("name", "update"), [("lars", lars), ("sgd", sgd), ("adamw", adamw)])
def test_scheduled_decay_and_groups(name, update):
    """A decay per step; one part without decay, one frozen."""
    decays = [0.0, 0.1, 0.2, 0.3, 0.4]
    with jax.enable_x64(True):
        config = make_config(
            optimizer__name=name, optimizer__trust_coefficient=0.05, optimizer__beta2=0.95
        )
        params, gradients = example()
        labels = {"encoder": "default", "projector": "no_decay", "predictor": "frozen"}

        def groups(params):
            return jax.tree_util.tree_map_with_path(lambda path, _: labels[path[0].key], params)

        def decay_at(count):
            return jnp.asarray(decays)[count]

        optimizer = optimizers.create_optimizer(config, schedule_of_rates, groups, decay_at)
        actual = run(optimizer, params, gradients)
    for part, label in labels.items():
        for leaf, start in params[part].items():
            w, v = start, 0.0
            for rate, decay, gradient in zip(RATES, decays, gradients, strict=True):
                if label != "frozen":
                    decay = decay if label == "default" else 0.0
                    w, v = update(w, v, gradient[part][leaf], rate, weight_decay=decay)
            np.testing.assert_allclose(actual[part][leaf], w, atol=1e-12)

"""LARS, SGD and AdamW with their parameter groups, and the schedules."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import ml_collections
import optax

from gsjax import errors
from gsjax.train import OPTIMIZERS

Rate: TypeAlias = float | optax.Schedule


def scaled_learning_rate(config: ml_collections.ConfigDict) -> float:
    """Returns `optimizer.learning_rate` scaled by the batch size (Goyal et al., arXiv:1706.02677).

    `optimizer.scaling` is linear or sqrt in batch_size / 256 (SimCLR, arXiv:2002.05709, B.1), or
    none.
    """
    ratio = config.batch_size / 256
    factor = {"linear": ratio, "sqrt": ratio**0.5, "none": 1.0}[config.optimizer.scaling]
    return config.optimizer.learning_rate * factor


def first_steps(
    config: ml_collections.ConfigDict, epochs: float, num_steps: int, steps_per_epoch: int
) -> int:
    """Returns the steps of the first epochs: at most a tenth of a run that `num_steps` shortens."""
    steps = round(epochs * steps_per_epoch)
    return min(steps, num_steps // 10) if config.num_steps > 0 else steps


def create_schedule(
    config: ml_collections.ConfigDict, num_steps: int, steps_per_epoch: int
) -> optax.Schedule:
    """Creates the learning rate schedule: linear warmup from 0, then cosine decay.

    At step k = 0, 1, ... it is lr * k / warm for k < warm, then
    end + (lr - end) * (1 + cos(pi * (k - warm) / (num_steps - warm))) / 2
    (google-research/simclr, model.py), where end is `schedule.final_learning_rate`.
    A run shortened by `config.num_steps` warms up for at most a tenth of its steps.

    Raises:
      UserError: the warmup is not shorter than the run.
    """
    warmup = first_steps(config, config.schedule.warmup_epochs, num_steps, steps_per_epoch)
    if warmup >= num_steps:
        raise errors.UserError(
            f"schedule.warmup_epochs={config.schedule.warmup_epochs:g} is {warmup} steps, but the "
            f"run has only {num_steps}: lower it or raise num_epochs"
        )
    rate, end = scaled_learning_rate(config), config.schedule.final_learning_rate
    if warmup == 0:
        return optax.cosine_decay_schedule(rate, num_steps, end / rate if end else 0.0)
    return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, num_steps, end)


def create_weight_decay(config: ml_collections.ConfigDict, num_steps: int) -> Rate:
    """Creates the weight decay: constant, or along a half cosine to its final value (DINO, A).

    At step k it is final - (final - initial) * (1 + cos(pi * k / num_steps)) / 2.
    """
    initial, final = config.optimizer.weight_decay, config.schedule.final_weight_decay
    if not final:
        return initial
    down = optax.cosine_decay_schedule(1.0, num_steps)
    return lambda count: final - (final - initial) * down(count)


def create_optimizer(
    config: ml_collections.ConfigDict,
    schedule: optax.Schedule,
    param_groups: Callable[[Any], Any] | None = None,
    weight_decay: Rate | None = None,
    late_steps: int = 0,
) -> optax.GradientTransformation:
    """Creates the optimizer named by `optimizer.name`, after `optimizer.clip`.

    Args:
      config: the whole configuration.
      schedule: the learning rate per step.
      param_groups: parameters -> a label for each, as `gsjax.methods.base.Method.param_groups`.
        If None, all are `default`.
      weight_decay: weight decay, or a schedule of it; `optimizer.weight_decay` if None.
      late_steps: steps at the start in which parameters labeled `late` and their optimizer's
        state stay as they are.
    """
    create = functools.partial(OPTIMIZERS[config.optimizer.name].load(), config.optimizer)
    decay = config.optimizer.weight_decay if weight_decay is None else weight_decay
    if param_groups is None:
        return create(schedule, decay)
    groups = {
        "default": create(schedule, decay),
        "constant": create(scaled_learning_rate(config), decay),
        "no_decay": create(schedule, 0.0),
        "late": _late(create, schedule, decay, late_steps),
        "frozen": optax.set_to_zero(),
    }
    optimizer = optax.partition(groups, param_groups)
    clip = config.optimizer.clip
    return optax.chain(clip_each(clip), optimizer) if clip else optimizer


def clip_each(norm: float) -> optax.GradientTransformation:
    """Scales every parameter's gradient on its own down to at most this norm (DINO, utils.py)."""

    def clipped(gradient: jax.Array) -> jax.Array:
        return gradient * jnp.minimum(norm / (jnp.linalg.norm(gradient.ravel()) + 1e-6), 1)

    return optax.stateless(lambda grads, _: jax.tree.map(clipped, grads))


def _late(
    create: Callable[[Rate, Rate], optax.GradientTransformation],
    learning_rate: Rate,
    weight_decay: Rate,
    first: int,
) -> optax.GradientTransformation:
    """Skips all updates before step `first`, where the optimizer's own step count starts.

    The schedules count from step 0.
    """

    def shifted(rate: Rate) -> Rate:
        return (lambda count: rate(count + first)) if callable(rate) else rate

    inner = create(shifted(learning_rate), shifted(weight_decay))
    return optax.conditionally_mask(inner, lambda step: step >= first)


def lars(
    settings: ml_collections.ConfigDict, learning_rate: Rate, weight_decay: Rate
) -> optax.GradientTransformation:
    """LARS (You et al., arXiv:1708.03888), for weights with two or more dimensions.

    Others, such as biases, neither decay nor have a trust ratio. The momentum accumulates updates
    that are already multiplied by the learning rate (google-research/simclr, lars_optimizer.py);
    with `optimizer.rate_after_momentum` the rate multiplies the momentum (BYOL, MoCo v3).
    """
    steps = [
        optax.scale_by_learning_rate(learning_rate),
        optax.trace(decay=settings.momentum),
    ]
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_is_weight),
        optax.masked(
            optax.scale_by_trust_ratio(trust_coefficient=settings.trust_coefficient), _is_weight
        ),
        *(reversed(steps) if settings.rate_after_momentum else steps),
    )


def sgd(
    settings: ml_collections.ConfigDict, learning_rate: Rate, weight_decay: Rate
) -> optax.GradientTransformation:
    """SGD as in PyTorch: every parameter decays, and the rate multiplies the momentum."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=settings.momentum),
    )


def adamw(
    settings: ml_collections.ConfigDict, learning_rate: Rate, weight_decay: Rate
) -> optax.GradientTransformation:
    """AdamW as in PyTorch: every parameter decays, by rate * decay (arXiv:1711.05101)."""
    return optax.adamw(
        learning_rate, b1=settings.momentum, b2=settings.beta2, weight_decay=weight_decay
    )


def _is_weight(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)

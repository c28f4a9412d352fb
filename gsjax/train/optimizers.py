"""LARS and SGD with their masks, and the learning rate schedule."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
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


def create_schedule(
    config: ml_collections.ConfigDict, num_steps: int, steps_per_epoch: int
) -> optax.Schedule:
    """Creates the learning rate schedule: linear warmup from 0, then cosine decay to 0.

    At step k = 0, 1, ... it is lr * k / warm for k < warm, then
    lr * (1 + cos(pi * (k - warm) / (num_steps - warm))) / 2 (google-research/simclr, model.py).
    A run shortened by `config.num_steps` warms up for at most a tenth of its steps.

    Raises:
      UserError: the warmup is not shorter than the run.
    """
    warmup = round(config.schedule.warmup_epochs * steps_per_epoch)
    if config.num_steps > 0:
        warmup = min(warmup, num_steps // 10)
    if warmup >= num_steps:
        raise errors.UserError(
            f"schedule.warmup_epochs={config.schedule.warmup_epochs:g} is {warmup} steps, but the "
            f"run has only {num_steps}: lower it or raise num_epochs"
        )
    rate = scaled_learning_rate(config)
    if warmup == 0:
        return optax.cosine_decay_schedule(rate, num_steps)
    return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, num_steps)


def create_optimizer(
    config: ml_collections.ConfigDict,
    schedule: optax.Schedule,
    param_groups: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """Creates the optimizer named by `optimizer.name`.

    Args:
      config: the whole configuration.
      schedule: the learning rate per step.
      param_groups: parameters -> a label for each, as `gsjax.methods.base.Method.param_groups`;
        those labeled `constant` keep the scaled learning rate. If None, all follow the schedule.
    """
    create = functools.partial(OPTIMIZERS[config.optimizer.name].load(), config.optimizer)
    if param_groups is None:
        return create(schedule)
    groups = {"default": create(schedule), "constant": create(scaled_learning_rate(config))}
    return optax.partition(groups, param_groups)


def lars(settings: ml_collections.ConfigDict, learning_rate: Rate) -> optax.GradientTransformation:
    """LARS (google-research/simclr, lars_optimizer.py).

    Weight decay and trust ratios apply only to weights with two or more dimensions; the momentum
    accumulates updates already multiplied by the learning rate.
    """
    return optax.lars(
        learning_rate,
        weight_decay=settings.weight_decay,
        weight_decay_mask=_is_weight,
        trust_coefficient=settings.trust_coefficient,
        trust_ratio_mask=_is_weight,
        momentum=settings.momentum,
    )


def sgd(settings: ml_collections.ConfigDict, learning_rate: Rate) -> optax.GradientTransformation:
    """SGD as in PyTorch: every parameter decays, and the rate multiplies the momentum."""
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(learning_rate, momentum=settings.momentum),
    )


def _is_weight(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)

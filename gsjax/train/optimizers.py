"""LARS and SGD with their masks, and the learning rate schedule."""

import jax
import ml_collections
import optax

from gsjax import errors


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
    """Builds the learning rate per step: linear warm-up from 0, then cosine to 0.

    At step k = 0, 1, ... it is lr * k / warm for k < warm, then
    lr * (1 + cos(pi * (k - warm) / (num_steps - warm))) / 2 (google-research/simclr, model.py).
    A run shortened by `config.num_steps` warms up for at most a tenth of its steps.

    Raises:
      UserError: the warm-up is as long as the run.
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
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Builds the optimiser of parameters {"encoder": ..., "projector": ..., ["predictor": ...]}.

    LARS (google-research/simclr, lars_optimizer.py) decays and trust-scales weights of two or
    more dimensions only; its momentum accumulates updates that contain the learning rate. SGD is
    PyTorch's: every parameter decays, and the rate multiplies the momentum. With
    `optimizer.fix_pred_lr` the predictor keeps the scaled learning rate (SimSiam,
    arXiv:2011.10566, 4.2).
    """
    if not config.optimizer.fix_pred_lr:
        return _create(config.optimizer, schedule)
    return optax.partition(
        {
            "scheduled": _create(config.optimizer, schedule),
            "constant": _create(config.optimizer, scaled_learning_rate(config)),
        },
        lambda params: {
            name: "constant" if name == "predictor" else "scheduled" for name in params
        },
    )


def _create(settings, learning_rate) -> optax.GradientTransformation:
    if settings.name == "lars":
        return optax.lars(
            learning_rate,
            weight_decay=settings.weight_decay,
            weight_decay_mask=_is_weight,
            trust_coefficient=settings.trust_coefficient,
            trust_ratio_mask=_is_weight,
            momentum=settings.momentum,
        )
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(learning_rate, momentum=settings.momentum),
    )


def _is_weight(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)

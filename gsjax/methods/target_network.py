"""Target networks: moving averages of the trained ones (MoCo, BYOL)."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from gsjax.methods.base import Progress

Tree = Any


def momentum(settings: ml_collections.ConfigDict, progress: Progress) -> jax.Array:
    """Returns the momentum of a step: constant, or along a cosine to the final one (BYOL, C.1).

    Args:
      settings: the group `target`.
      progress: progress of the training run.
    """
    start = settings.momentum
    end = settings.final_momentum or start
    return end - (end - start) * (1 + jnp.cos(jnp.pi * progress.step / progress.num_steps)) / 2


def follow(
    extra: Tree, params: Tree, settings: ml_collections.ConfigDict, progress: Progress
) -> Tree:
    """Moves the target network's parameters towards the trained ones; BN statistics stay.

    Args:
      extra: holds the target network as `target`, {"params": ..., "batch_stats": ...}.
      params: {network: parameters} after the optimizer's step.
      settings: the group `target`.
      progress: progress of the training run.

    Returns:
      `extra` with new `target`.
    """
    m = momentum(settings, progress)

    def mean(target, online):
        share = m.astype(target.dtype)
        return share * target + (1 - share) * online

    target = extra["target"]
    online = {name: params[name] for name in target["params"]}
    moved = jax.tree.map(mean, target["params"], online)
    return extra | {"target": target | {"params": moved}}

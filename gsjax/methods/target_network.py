"""Target networks: moving averages of the trained ones (MoCo, BYOL, DINO)."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from gsjax.methods.base import Method, Progress, Views, each_view, view_keys

Tree = Any


def copy(params: Tree, extra: Tree, without: tuple[str, ...] = ()) -> Tree:
    """Returns a target network, {"params": ..., "batch_stats": ...}, that starts as a copy.

    Args:
      params: {network: parameters}.
      extra: holds the statistics in the same form, as `batch_stats`.
      without: networks that it lacks.
    """
    return {
        name: {network: part for network, part in whole.items() if network not in without}
        for name, whole in (("params", params), ("batch_stats", extra["batch_stats"]))
    }


def embed_views(
    method: Method, params: Tree, extra: Tree, views: Views, keys: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, Tree]:
    """Applies the trained networks to all views and the target network to the global ones.

    Each view has its own passes and batch statistics; the target network's are its own, in training
    mode.

    Returns:
      (embeddings [B, W, D] of the global views, predictions [B, V, D], targets [B, W, D], `extra`
      with the new statistics).
    """
    online, target = extra["batch_stats"], extra["target"]
    target_stats, num_targets = target["batch_stats"], views["global"].shape[1]
    embeddings, predictions, targets = [], [], []
    for view, x in enumerate(each_view(views)):
        own = view_keys(keys, view)
        (_, z, p), online = method.forward(params, online, x, keys=own)
        predictions.append(p)
        if view < num_targets:
            (_, t), target_stats = method.forward(target["params"], target_stats, x)
            embeddings.append(z)
            targets.append(t)
    new = extra | {"batch_stats": online, "target": target | {"batch_stats": target_stats}}
    z, p, t = (jnp.stack(outputs, axis=1) for outputs in (embeddings, predictions, targets))
    return z, p, t, new


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

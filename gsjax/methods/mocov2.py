"""MoCo v2 (Chen et al., arXiv:2003.04297), plain or with graded similarity (thesis, section 4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax import lax

from gsjax import losses
from gsjax.methods import base, target_network
from gsjax.runtime.parallel import AXIS


class MoCoV2(base.Method):
    """Encoder and projector for queries, their target network for keys, and a queue of keys."""

    distance = "|q_i - k_j|"

    def init(self, key, image_size, encoder=None):
        """See `Method.init`; the key network starts as a copy, the queue as random unit rows."""
        params, extra = super().init(key, image_size, encoder)
        shape = (self.config.queue.size, self.config.projector.out_dim)
        dtype = jax.tree.leaves(params)[0].dtype
        rows = jax.random.normal(jax.random.fold_in(key, len(self.networks)), shape, dtype)
        target = target_network.copy(params, extra)
        return params, extra | {"target": target, "queue": losses.normalize(rows)}

    def loss(self, params, extra, views, boxes, keys, progress):
        """See `Method.loss`; each view has its own forward passes and batch statistics."""
        settings, psi, x = self.config, self.psi(boxes), list(base.each_view(views))
        symmetric, num_targets = settings.loss.symmetric, views["global"].shape[1]
        # One direction compares the first view's queries, and the local ones, with the second
        # view's keys.
        key_views = range(num_targets) if symmetric else [1]
        query_views = [v for v in range(len(x)) if symmetric or v not in key_views]
        online, target = extra["batch_stats"], extra["target"]
        target_stats, q, k = target["batch_stats"], {}, {}
        for view in query_views:
            own = base.view_keys(keys, view)
            (_, q[view]), online = self.forward(params, online, x[view], keys=own)
        for view in key_views:
            (_, z), target_stats = self.forward(target["params"], target_stats, x[view])
            k[view] = lax.stop_gradient(losses.normalize(z))
        pairs = [(v, w) for v in q for w in k if v != w]
        graded = [psi[:, v, w] for v, w in pairs] if self.is_graded else None
        loss = losses.momentum_contrastive(
            jnp.concatenate([q[v] for v, _ in pairs]),
            jnp.concatenate([k[w] for _, w in pairs]),
            extra["queue"],
            None if graded is None else jnp.concatenate(graded),
            settings.loss.temperature,
            settings.similarity.scale,
            axis_name=AXIS,
            grading=self.grading,
        )
        new = {
            "batch_stats": online,
            "target": target | {"batch_stats": target_stats},
            "queue": enqueued(extra["queue"], list(k.values()), progress.step),
        }
        shown = [q[view] if view in q else k[view] for view in range(num_targets)]
        return loss, (new, base.metrics(jnp.stack(shown, axis=1), psi))

    def after_update(self, params, extra, progress):
        """See `Method.after_update`; moves the key network's parameters."""
        return target_network.follow(extra, params, self.config.target, progress)

    def embed(self, params, extra, images: jax.Array):
        """See `Method.embed`; returns queries q and keys k."""
        (_, q), _ = self.forward(params, extra["batch_stats"], images, train=False)
        (_, k), _ = self.forward(**extra["target"], x=images, train=False)
        return q, k


def enqueued(queue: jax.Array, keys: list[jax.Array], step: jax.Array) -> jax.Array:
    """Replaces the oldest rows of a queue by the keys of all devices.

    Args:
      queue: [K, D].
      keys: [B, D] of this device, one per view.
      step: [] int32, steps taken before.

    Returns:
      [K, D], with the keys of the first view first, in the order of the global batch.

    Raises:
      ValueError: K is not a multiple of the number of all keys.
    """
    rows = jnp.concatenate([lax.all_gather(view, AXIS, tiled=True) for view in keys])
    if len(queue) % len(rows):
        raise ValueError(f"{len(queue)} rows are no multiple of the {len(rows)} keys of a step")
    # In whole steps, which cannot overflow as a count of keys would.
    place = step % (len(queue) // len(rows)) * len(rows)
    return lax.dynamic_update_slice(queue, rows, (place, jnp.zeros_like(place)))


def create(encoder: nn.Module, config: ml_collections.ConfigDict) -> MoCoV2:
    """Creates MoCo v2; its projector has no BN in between."""
    projector = base.create_projector(config, last_bn_scale=True, hidden_bn=False)
    return MoCoV2({"encoder": encoder, "projector": projector}, config)

"""BYOL (Grill et al., arXiv:2006.07733), plain or with graded similarity (thesis, section 4)."""

import flax.linen as nn
import jax
import ml_collections

from gsjax import losses
from gsjax.methods import base, target_network
from gsjax.runtime.parallel import AXIS


class BYOL(base.Method):
    """Encoder, projector and predictor; the target network follows the first two.

    The target network has BatchNorm statistics of its own, in training mode.
    """

    distance = "|p_i - z'_j|"

    def init(self, key, image_size, encoder=None):
        """See `Method.init`; the target network starts as a copy."""
        params, extra = super().init(key, image_size, encoder)
        return params, extra | {"target": target_network.copy(params, extra, ("predictor",))}

    def loss(self, params, extra, views, boxes, keys, progress):
        """See `Method.loss`; each view has its own forward passes and batch statistics."""
        del progress
        z, p, t, new = target_network.embed_views(self, params, extra, views, keys)
        psi = self.psi(boxes)
        loss = losses.siamese(
            p,
            t,
            psi if self.is_graded else None,
            self.config.loss.siamese,
            axis_name=AXIS,
            grading=self.grading,
        )
        return loss, (new, base.metrics(z, psi))

    def after_update(self, params, extra, progress):
        """See `Method.after_update`; moves the target network's parameters."""
        return target_network.follow(extra, params, self.config.target, progress)

    def embed(self, params, extra, images: jax.Array):
        """See `Method.embed`; returns predictions p and the target network's embeddings z'."""
        (*_, p), _ = self.forward(params, extra["batch_stats"], images, train=False)
        (_, t), _ = self.forward(**extra["target"], x=images, train=False)
        return p, t


def create(encoder: nn.Module, config: ml_collections.ConfigDict) -> BYOL:
    """Creates BYOL."""
    projector = base.create_projector(config, last_bn_scale=True)
    predictor = base.create_predictor(config)
    return BYOL({"encoder": encoder, "projector": projector, "predictor": predictor}, config)

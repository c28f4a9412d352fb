"""MoCo v3 (Chen et al., arXiv:2104.02057), plain or with graded similarity (thesis, section 4)."""

import flax.linen as nn
import jax
import ml_collections

from gsjax import target_losses
from gsjax.methods import base, target_network
from gsjax.models.heads import Projector
from gsjax.runtime.parallel import AXIS


class MoCoV3(base.Method):
    """Encoder, projector and predictor for queries; the first two's target network for keys.

    Negatives are the keys of all other images in the batch.
    """

    distance = "|q_i - k_j|"

    def init(self, key, image_size, encoder=None):
        """See `Method.init`; the key network starts as a copy."""
        params, extra = super().init(key, image_size, encoder)
        return params, extra | {"target": target_network.copy(params, extra, ("predictor",))}

    def loss(self, params, extra, views, boxes, keys, progress):
        """See `Method.loss`; each view has its own forward passes and batch statistics."""
        del progress
        z, q, k, new = target_network.embed_views(self, params, extra, views, keys)
        psi, settings = self.psi(boxes), self.config
        loss = target_losses.in_batch_contrastive(
            q,
            k,
            psi if self.is_graded else None,
            settings.loss.temperature,
            settings.similarity.scale,
            axis_name=AXIS,
            grading=self.grading,
        )
        return loss, (new, base.metrics(z, psi))

    def after_update(self, params, extra, progress):
        """See `Method.after_update`; moves the key network, with the next step's momentum."""
        following = progress._replace(step=progress.step + 1)
        return target_network.follow(extra, params, self.config.target, following)

    def embed(self, params, extra, images: jax.Array):
        """See `Method.embed`; returns queries q and keys k."""
        (*_, q), _ = self.forward(params, extra["batch_stats"], images, train=False)
        (_, k), _ = self.forward(**extra["target"], x=images, train=False)
        return q, k


def create(encoder: nn.Module, config: ml_collections.ConfigDict) -> MoCoV3:
    """Creates MoCo v3; the last BN of its heads has neither scale nor bias."""
    predictor = Projector(
        num_layers=2,
        hidden_dim=config.predictor.hidden_dim,
        out_dim=config.projector.out_dim,
        last_bn=config.predictor.last_bn,
        last_bn_scale=False,
        last_bias=False,
        dtype=config.encoder.dtype,
    )
    projector = base.create_projector(config, last_bn_scale=False)
    return MoCoV3({"encoder": encoder, "projector": projector, "predictor": predictor}, config)

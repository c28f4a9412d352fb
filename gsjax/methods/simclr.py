"""SimCLR (Chen et al., arXiv:2002.05709), plain or with graded similarity (thesis, section 4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from gsjax import losses
from gsjax.methods import base
from gsjax.runtime.parallel import AXIS


class SimCLR(base.Method):
    """Encoder and projector, with the loss of eq. 9 or, graded, eq. 10 of the thesis."""

    def loss(self, params, extra, views, boxes, keys, progress):
        """See `Method.loss`; views of one size share a forward pass and its batch statistics."""
        del progress
        batch_stats, embeddings = extra["batch_stats"], []
        for x, own in base.each_size(views, keys):
            (_, z), batch_stats = self.forward(params, batch_stats, x, keys=own)
            embeddings.append(base.by_image(z, len(keys)))
        z, targets = jnp.concatenate(embeddings, axis=1), embeddings[0]
        psi, settings = self.psi(boxes), self.config
        loss = losses.contrastive(
            z,
            targets,
            psi if self.is_graded else None,
            settings.loss.temperature,
            settings.similarity.scale,
            axis_name=AXIS,
            grading=self.grading,
        )
        return loss, ({"batch_stats": batch_stats}, base.metrics(targets, psi))

    def embed(self, params, extra, images: jax.Array):
        """See `Method.embed`; returns (z, z)."""
        (_, z), _ = self.forward(params, extra["batch_stats"], images, train=False)
        return z, z


def create(encoder: nn.Module, config: ml_collections.ConfigDict) -> SimCLR:
    """Creates SimCLR."""
    # The last BN of google-research/simclr has a scale.
    projector = base.create_projector(config, last_bn_scale=True)
    return SimCLR({"encoder": encoder, "projector": projector}, config)

"""SimSiam (Chen and He, arXiv:2011.10566), plain or with graded similarity (thesis, section 4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from gsjax import losses
from gsjax.methods import base
from gsjax.runtime.parallel import AXIS


class SimSiam(base.Method):
    """Encoder, projector and predictor, with the loss of eq. 3 or, graded, eq. 8 of the thesis."""

    distance = "|p_i - z_j|"

    def loss(self, params, extra, views, boxes, keys, progress):
        """See `Method.loss`; each view has its own forward pass and batch statistics."""
        del progress
        batch_stats, embeddings, predictions = extra["batch_stats"], [], []
        for view, x in enumerate(base.each_view(views)):
            own = base.view_keys(keys, view)
            (_, z, p), batch_stats = self.forward(params, batch_stats, x, keys=own)
            embeddings.append(z)
            predictions.append(p)
        z = jnp.stack(embeddings[: views["global"].shape[1]], axis=1)
        p, psi = jnp.stack(predictions, axis=1), self.psi(boxes)
        loss = losses.siamese(
            p,
            z,
            psi if self.is_graded else None,
            self.config.loss.siamese,
            axis_name=AXIS,
            grading=self.grading,
        )
        return loss, ({"batch_stats": batch_stats}, base.metrics(z, psi))

    def param_groups(self, params):
        """See `Method.param_groups`; the predictor's rate may be constant (SimSiam, 4.2)."""
        groups = super().param_groups(params)
        if self.config.optimizer.fix_pred_lr:
            groups["predictor"] = jax.tree.map(lambda _: "constant", params["predictor"])
        return groups

    def embed(self, params, extra, images: jax.Array):
        """See `Method.embed`; returns predictions p and embeddings z."""
        (_, z, p), _ = self.forward(params, extra["batch_stats"], images, train=False)
        return p, z


def create(encoder: nn.Module, config: ml_collections.ConfigDict) -> SimSiam:
    """Creates SimSiam."""
    # The last BN of facebookresearch/simsiam has no scale.
    projector = base.create_projector(config, last_bn_scale=False)
    predictor = base.create_predictor(config)
    return SimSiam({"encoder": encoder, "projector": projector, "predictor": predictor}, config)

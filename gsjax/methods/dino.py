"""DINO (Caron et al., arXiv:2104.14294), plain or with its pairs weighted by graded similarity."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax import lax

from gsjax import target_losses
from gsjax.methods import base, target_network
from gsjax.models.heads import GELUProjector, Prototypes
from gsjax.runtime.parallel import AXIS


class DINO(base.Method):
    """Encoder, projector and prototypes of a student; its target network, the teacher; a center.

    Views of one size share a forward pass and its batch statistics.
    """

    distance = "|z_i - z'_j|"

    def init(self, key, image_size, encoder=None):
        """See `Method.init`; the teacher starts as a copy, the center at 0."""
        params, extra = super().init(key, image_size, encoder)
        dtype = jax.tree.leaves(params)[0].dtype
        center = jnp.zeros(self.config.prototypes.number, dtype)
        return params, extra | {"target": target_network.copy(params, extra), "center": center}

    def loss(self, params, extra, views, boxes, keys, progress):
        """See `Method.loss`; the loss uses the center before this step."""
        num_images, stats, target = len(keys), extra["batch_stats"], extra["target"]
        embeddings, scores = [], []
        sizes = list(base.each_size(views, keys))
        for x, own in sizes:
            (_, z, s), stats = self.forward(params, stats, x, keys=own)
            embeddings.append(base.by_image(z, num_images))
            scores.append(base.by_image(s, num_images))
        x, _ = sizes[0]  # the global views
        (*_, t), target_stats = self.forward(target["params"], target["batch_stats"], x)
        t = lax.stop_gradient(base.by_image(t, num_images))
        teacher = target_losses.teacher_probabilities(
            t, extra["center"], self.teacher_temperature(progress)
        )
        psi = self.psi(boxes)
        loss = target_losses.distillation(
            jnp.concatenate(scores, axis=1),
            teacher,
            psi if self.is_graded else None,
            self.config.loss.student_temperature,
            axis_name=AXIS,
        )
        share, mean = self.config.prototypes.center_momentum, lax.pmean(t.mean((0, 1)), AXIS)
        new = {
            "batch_stats": stats,
            "target": target | {"batch_stats": target_stats},
            "center": share * extra["center"] + (1 - share) * mean,
        }
        return loss, (new, base.metrics(embeddings[0], psi) | entropies(teacher))

    def teacher_temperature(self, progress: base.Progress) -> jax.Array:
        """Temperature of the teacher: warmed up linearly, by epochs."""
        settings = self.config.loss
        first, last = settings.first_teacher_temperature, settings.teacher_temperature
        epoch = progress.step // progress.epoch_steps
        done = jnp.minimum(epoch / max(settings.teacher_warmup_epochs - 1, 1), 1)
        is_over = epoch >= settings.teacher_warmup_epochs
        return jnp.where(is_over, last, first + (last - first) * done)

    def after_update(self, params, extra, progress):
        """See `Method.after_update`; moves the teacher's parameters."""
        return target_network.follow(extra, params, self.config.target, progress)

    def param_groups(self, params):
        """See `Method.param_groups`; vectors do not decay, prototypes start late."""
        groups = jax.tree.map(
            lambda x, label: "no_decay" if x.ndim < 2 and label == "default" else label,
            params,
            super().param_groups(params),
        )
        return groups | {"prototypes": jax.tree.map(lambda _: "late", params["prototypes"])}

    @property
    def late_epochs(self):
        """See `Method.late_epochs`; the prototypes keep their initial weights."""
        return self.config.prototypes.frozen_epochs

    def embed(self, params, extra, images: jax.Array):
        """See `Method.embed`; returns the student's and the teacher's vectors z, z'."""
        (_, z, _), _ = self.forward(params, extra["batch_stats"], images, train=False)
        (_, t, _), _ = self.forward(**extra["target"], x=images, train=False)
        return z, t

    def encoder_variables(self, params, extra):
        """See `Method.encoder_variables`; those of the teacher."""
        del params
        return {name: part["encoder"] for name, part in extra["target"].items()}


def entropies(teacher: jax.Array) -> dict[str, jax.Array]:
    """Returns how far the teacher is from either collapse, in shares of ln K.

    Args:
      teacher: [B, W, K] this device's probabilities.

    Returns:
      `teacher_entropy`, the mean entropy of its predictions (1: uniform), and
      `mean_teacher_entropy`, that of their mean (0: always the same prototype).
    """

    def entropy(p: jax.Array) -> jax.Array:
        return jax.scipy.special.entr(p).sum(-1) / jnp.log(p.shape[-1])

    each, mean = lax.pmean((jnp.mean(entropy(teacher)), teacher.mean((0, 1))), AXIS)
    return {"teacher_entropy": each, "mean_teacher_entropy": entropy(mean)}


def create(encoder: nn.Module, config: ml_collections.ConfigDict) -> DINO:
    """Creates DINO."""
    projector, dtype = config.projector, config.encoder.dtype
    networks = {
        "encoder": encoder,
        "projector": GELUProjector(
            projector.num_layers,
            projector.hidden_dim,
            projector.out_dim,
            projector.hidden_bn,
            dtype,
        ),
        "prototypes": Prototypes(config.prototypes.number, config.prototypes.unit, dtype),
    }
    return DINO(networks, config)

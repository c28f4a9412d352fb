"""SimCLR and SimSiam: what is initialised, what is applied, which loss.

Parameters and batch statistics are dictionaries with the keys `encoder`, `projector` and, for
SimSiam, `predictor`. `loss` runs per device, inside a program over the axis `batch`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax import lax

from gsjax import losses, similarity
from gsjax.models.heads import Predictor, Projector
from gsjax.models.resnet import create_encoder
from gsjax.runtime.parallel import AXIS

Tree = Any
_OVERLAPS = {"ioa": similarity.ioa, "iou": similarity.iou}


@dataclasses.dataclass(frozen=True)
class _Siamese:
    """What both methods share: modules that are applied one after another, and psi.

    Attributes:
      modules: {name: module}, applied in this order.
      config: the whole configuration; `data.image_size`, `similarity` and `loss` are read here.
    """

    modules: dict[str, nn.Module]
    config: ml_collections.ConfigDict

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Returns (params, batch_stats) drawn from a key."""
        size = self.config.data.image_size
        x = jnp.zeros((2, size, size, 3))
        params, batch_stats = {}, {}
        for i, (name, module) in enumerate(self.modules.items()):
            x, variables = module.init_with_output(jax.random.fold_in(key, i), x, train=True)
            params[name] = variables["params"]
            batch_stats[name] = variables["batch_stats"]
        return params, batch_stats

    def _apply(
        self, params: Tree, batch_stats: Tree, x: jax.Array, train: bool = True
    ) -> tuple[list, Tree]:
        """Applies the modules one after another; returns all their outputs and the statistics."""
        outputs, updated = [], {}
        for name, module in self.modules.items():
            variables = {"params": params[name], "batch_stats": batch_stats[name]}
            x, changes = module.apply(variables, x, train=train, mutable=["batch_stats"])
            updated[name] = changes["batch_stats"]
            outputs.append(x)
        return outputs, updated

    def embed(
        self, params: Tree, batch_stats: Tree, images: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What the loss compares, with BatchNorm in inference mode.

        The loss takes the distance of an anchor to the target of the other view, both scaled to
        length 1: SimCLR compares projections z with each other, SimSiam a prediction p with a z.

        Args:
          params: as from `init`.
          batch_stats: as from `init`.
          images: [B, S, S, 3] normalised.

        Returns:
          (anchors, targets), [B, D] each, not normalised: (z, z) of SimCLR, (p, z) of SimSiam.
        """
        (_, target, *rest), _ = self._apply(params, batch_stats, images, train=False)
        return (rest[0] if rest else target), target

    def psi(self, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Graded similarity [B] of the views' boxes [B, 2, 4] in both directions, eq. 5."""
        settings = self.config.similarity
        boxes_i, boxes_j = boxes[:, 0], boxes[:, 1]
        if settings.measure == "none":
            one = jnp.ones(len(boxes), boxes.dtype)
            return one, one
        overlap = _OVERLAPS[settings.measure]
        return (
            similarity.graded(overlap(boxes_i, boxes_j), settings.threshold),
            similarity.graded(overlap(boxes_j, boxes_i), settings.threshold),
        )


class SimCLR(_Siamese):
    """SimCLR (Chen et al. 2020), with the loss of eq. 9 or, graded, eq. 10."""

    def loss(
        self, params: Tree, batch_stats: Tree, views: jax.Array, boxes: jax.Array
    ) -> tuple[jax.Array, tuple[Tree, dict[str, jax.Array]]]:
        """The mean loss of this device's anchors.

        Args:
          params: as from `init`.
          batch_stats: as from `init`.
          views: [2, B, S, S, 3] augmented and normalised.
          boxes: [B, 2, 4] crop boxes in pixels of the original image.

        Returns:
          The loss and (updated batch statistics, metrics of the local batch).
        """
        (_, z), batch_stats = self._apply(params, batch_stats, jnp.concatenate(views))
        z_i, z_j = jnp.split(z, 2)
        psi_ij, psi_ji = self.psi(boxes)
        temperature = self.config.loss.temperature
        if self.config.similarity.measure == "none":
            loss = losses.nt_xent(z_i, z_j, temperature, axis_name=AXIS)
        else:
            scale = self.config.similarity.scale
            loss = losses.graded_nt_xent(
                z_i, z_j, psi_ij, psi_ji, temperature, scale, axis_name=AXIS
            )
        return loss, (batch_stats, _metrics(z_i, z_j, psi_ij, psi_ji))


class SimSiam(_Siamese):
    """SimSiam (Chen and He 2021), with the loss of eq. 3 or, graded, eq. 8."""

    def loss(
        self, params: Tree, batch_stats: Tree, views: jax.Array, boxes: jax.Array
    ) -> tuple[jax.Array, tuple[Tree, dict[str, jax.Array]]]:
        """As `SimCLR.loss`; each view has a pass of its own and its own batch statistics."""
        (_, z_i, p_i), batch_stats = self._apply(params, batch_stats, views[0])
        (_, z_j, p_j), batch_stats = self._apply(params, batch_stats, views[1])
        psi_ij, psi_ji = self.psi(boxes)
        if self.config.similarity.measure != "none":
            loss = losses.graded_siamese_mse(p_i, p_j, z_i, z_j, psi_ij, psi_ji)
        elif self.config.loss.siamese == "cosine":
            loss = losses.siamese_cosine(p_i, p_j, z_i, z_j)
        else:
            loss = losses.siamese_mse(p_i, p_j, z_i, z_j)
        return loss, (batch_stats, _metrics(z_i, z_j, psi_ij, psi_ji))


def _metrics(
    z_i: jax.Array, z_j: jax.Array, psi_ij: jax.Array, psi_ji: jax.Array
) -> dict[str, jax.Array]:
    """Metrics over the global batch from this device's embeddings [B, D] and psi [B].

    `embedding_std` is the standard deviation of each coordinate of the normalised embeddings over
    the batch, averaged over coordinates: 1/sqrt(D) when they fill the sphere, 0 at collapse
    (SimSiam, section 4.1).
    """
    z = jnp.stack([z_i, z_j])
    unit = z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    psi = jnp.stack([psi_ij, psi_ji])
    mean = lax.pmean(jnp.mean(unit, axis=(0, 1)), AXIS)
    variance = lax.pmean(jnp.mean((unit - mean[None, None]) ** 2, axis=(0, 1)), AXIS)
    return {
        "psi_mean": lax.pmean(jnp.mean(psi), AXIS),
        "psi_one": lax.pmean(jnp.mean(psi >= 1), AXIS),
        "positive_distance": lax.pmean(jnp.mean(jnp.linalg.norm(unit[0] - unit[1], axis=-1)), AXIS),
        "embedding_std": jnp.mean(jnp.sqrt(variance)),
    }


Method = SimCLR | SimSiam


def create_method(config: ml_collections.ConfigDict, platform: str) -> Method:
    """Builds the method that `config.method` names, for devices of `platform`."""
    cpu_kernels = platform == "cpu"
    head = {"dtype": config.encoder.dtype, "cpu_kernels": cpu_kernels}
    simsiam = config.method == "simsiam"
    modules: dict[str, nn.Module] = {
        "encoder": create_encoder(config.encoder, cpu_kernels, config.remat),
        "projector": Projector(
            **config.projector,
            # google-research/simclr scales the normalised embedding, facebookresearch/simsiam not.
            last_bn_scale=not simsiam,
            **head,
        ),
    }
    if simsiam:
        modules["predictor"] = Predictor(
            config.predictor.hidden_dim, config.projector.out_dim, **head
        )
        return SimSiam(modules, config)
    return SimCLR(modules, config)

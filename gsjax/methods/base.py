"""The contract of a method, and what methods share.

A method holds modules and settings; what training changes travels through its functions: `params`,
which the optimizer trains, and `extra`, a mapping of everything else (BatchNorm statistics, and
with other methods a target network, a queue, a center). `loss` runs per device, inside a program
over the axis `batch`, where arrays of images hold this device's part of the batch.

Views are grouped by their size, {"global": [B, V, S, S, 3]}, and so are their crop boxes, [B, V, 4]
in pixels of the original image.
"""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax import lax

from gsjax import losses, similarity
from gsjax.models.heads import Projector
from gsjax.models.outputs import Outputs
from gsjax.runtime.parallel import AXIS

Tree = Any
Views = Mapping[str, jax.Array]


class Progress(NamedTuple):
    """How far a training has come.

    Attributes:
      step: [] int32, steps taken before this one.
      num_steps: length of the training.
      epoch_steps: steps of an epoch.
    """

    step: jax.Array
    num_steps: int
    epoch_steps: int


class Method(abc.ABC):
    """A pre-training method.

    Attributes:
      networks: {name: module}, the encoder first; by default applied one after another.
      config: the whole configuration, of which a method reads its own groups: `similarity`, `loss`
        and those of its heads.
      distance: what `embed` returns to compare, in words.
    """

    distance = "|z_i - z_j|"

    def __init__(
        self, networks: Mapping[str, nn.Module], config: ml_collections.ConfigDict
    ) -> None:
        self.networks, self.config = dict(networks), config

    def init(self, key: jax.Array, image_size: int) -> tuple[Tree, Tree]:
        """Returns (params, extra) of step 0 for images [N, S, S, 3].

        Params are {name of a network: its parameters}; extra holds `batch_stats`, likewise.
        """
        x: Any = jnp.zeros((2, image_size, image_size, 3))
        params, batch_stats = {}, {}
        for i, (name, network) in enumerate(self.networks.items()):
            y, variables = network.init_with_output(jax.random.fold_in(key, i), x, train=True)
            params[name] = variables["params"]
            batch_stats[name] = variables.get("batch_stats", {})
            x = _vectors(y)
        return params, {"batch_stats": batch_stats}

    @abc.abstractmethod
    def loss(
        self,
        params: Tree,
        extra: Tree,
        views: Views,
        boxes: Views,
        keys: jax.Array,
        progress: Progress,
    ) -> tuple[jax.Array, tuple[Tree, dict[str, jax.Array]]]:
        """The mean loss of this device's anchors.

        Args:
          params: as from `init`.
          extra: as from `init`.
          views: augmented and normalized, [B, V, S, S, 3] per size.
          boxes: crop boxes, [B, V, 4] per size.
          keys: [B], one per image, for randomness inside the networks.
          progress: of the training.

        Returns:
          The loss and (extra after the forward pass, metrics of the global batch).
        """

    def after_update(self, params: Tree, extra: Tree, progress: Progress) -> Tree:
        """Returns extra after the optimizer's step: moving averages, queues."""
        del params, progress
        return extra

    def param_groups(self, params: Tree) -> Tree:
        """Returns a label for every leaf: `default`, or `constant` for one whose rate is."""
        return jax.tree.map(lambda _: "default", params)

    @abc.abstractmethod
    def embed(self, params: Tree, extra: Tree, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the loss compares, in inference mode.

        The loss takes the distance of an anchor to the target of another view, both scaled to
        length 1.

        Args:
          params: as from `init`.
          extra: as from `init`.
          images: [B, S, S, 3] normalized.

        Returns:
          (anchors, targets), [B, D] each, not normalized.
        """

    def encoder_variables(self, params: Tree, extra: Tree) -> Tree:
        """Returns what `networks["encoder"].apply` takes: of the network to evaluate."""
        return {"params": params["encoder"], "batch_stats": extra["batch_stats"]["encoder"]}

    def psi(self, boxes: Views) -> jax.Array:
        """Graded similarity [B, V, W] of all views to the global ones (thesis, eq. 5)."""
        settings = self.config.similarity
        anchors = jnp.concatenate(list(boxes.values()), axis=1)
        return similarity.pairwise(anchors, boxes["global"], settings.measure, settings.threshold)

    @property
    def is_graded(self) -> bool:
        """Whether the loss is."""
        return self.config.similarity.measure != "none"

    def forward(
        self, params: Tree, batch_stats: Tree, x: jax.Array, train: bool = True
    ) -> tuple[list[jax.Array], Tree]:
        """Applies the networks one after another.

        Args:
          params: {name: parameters}.
          batch_stats: {name: statistics}.
          x: [N, S, S, 3].
          train: whether BatchNorm takes the statistics of the batch.

        Returns:
          The outputs of all networks, [N, F] each, and the updated statistics.
        """
        outputs, updated = [], {}
        for name, network in self.networks.items():
            variables = {"params": params[name], "batch_stats": batch_stats[name]}
            y, changes = network.apply(variables, x, train=train, mutable=["batch_stats"])
            updated[name] = changes.get("batch_stats", {})
            x = _vectors(y)
            outputs.append(x)
        return outputs, updated


def create_projector(config: ml_collections.ConfigDict, last_bn_scale: bool) -> Projector:
    """Builds the projector of the group `projector`; `last_bn_scale`: as of `Projector`."""
    return Projector(**config.projector, last_bn_scale=last_bn_scale, dtype=config.encoder.dtype)


def metrics(z: jax.Array, psi: jax.Array) -> dict[str, jax.Array]:
    """Metrics over the global batch, of this device's embeddings and similarities.

    `embedding_std` is the standard deviation of each coordinate of the normalized embeddings over
    the batch, averaged over coordinates: 1/sqrt(D) when they fill the sphere, 0 at collapse
    (SimSiam, section 4.1).

    Args:
      z: [B, W, D] embeddings of the targets' views.
      psi: [B, V, W].
    """
    unit = z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    of_pairs = psi[:, *losses.pairs(psi.shape[1], psi.shape[2])]
    first, second = losses.pairs(z.shape[1], z.shape[1])
    distance = jnp.linalg.norm(unit[:, first] - unit[:, second], axis=-1)
    mean = lax.pmean(jnp.mean(unit, axis=(0, 1)), AXIS)
    variance = lax.pmean(jnp.mean((unit - mean[None, None]) ** 2, axis=(0, 1)), AXIS)
    return {
        "psi_mean": lax.pmean(jnp.mean(of_pairs), AXIS),
        "psi_one": lax.pmean(jnp.mean(of_pairs >= 1), AXIS),
        "positive_distance": lax.pmean(jnp.mean(distance), AXIS),
        "embedding_std": jnp.mean(jnp.sqrt(variance)),
    }


def _vectors(y: jax.Array | Outputs) -> jax.Array:
    return y.pooled if isinstance(y, Outputs) else y

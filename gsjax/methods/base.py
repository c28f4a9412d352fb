"""The interface of a method, and what methods share.

A method holds modules and settings; what training changes is passed through its functions:
`params`, which the optimizer trains, and `extra`, a mapping of everything else (BatchNorm
statistics and, in other methods, a target network, a queue, a center). `loss` runs per device,
inside a program over the axis `batch`; arrays of images hold this device's part of the batch.

Views are grouped by size, {"global": [B, W, S, S, 3]} and with multi-crop "local" ones, in this
order; so are their crop boxes, [B, W, 4] in pixels of the original image. All V views are anchors,
the W global ones are targets.
"""

import abc
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax import lax

from gsjax import losses, similarity
from gsjax.models.heads import Predictor, Projector
from gsjax.models.outputs import Outputs
from gsjax.runtime.parallel import AXIS

MONITORED = 256
"""Number of images whose embeddings the step returns, about; all of a smaller batch."""

Tree = Any
Views = Mapping[str, jax.Array]


class Progress(NamedTuple):
    """The progress of a training run.

    Attributes:
      step: [] int32, steps taken before this one.
      num_steps: total steps.
      epoch_steps: steps per epoch.
    """

    step: jax.Array
    num_steps: int
    epoch_steps: int


class Method(abc.ABC):
    """A pre-training method.

    Attributes:
      networks: {name: module}, the encoder first; by default applied in sequence.
      config: the whole configuration; a method reads its own groups: `similarity`, `loss` and those
        of its heads.
      distance: the distance between the outputs of `embed`, for display.
    """

    distance = "|z_i - z_j|"

    def __init__(
        self, networks: Mapping[str, nn.Module], config: ml_collections.ConfigDict
    ) -> None:
        self.networks, self.config = dict(networks), config

    def init(
        self, key: jax.Array, image_size: int, encoder: Tree | None = None
    ) -> tuple[Tree, Tree]:
        """Returns (params, extra) at step 0 for images [N, S, S, 3].

        `params` is {network: parameters}; `extra` holds `batch_stats` in the same form. The encoder
        starts with the variables `encoder`, as returned by `encoder_variables`, if they are given.
        """
        x: Any = jnp.zeros((2, image_size, image_size, 3))
        params, batch_stats = {}, {}
        for i, (name, network) in enumerate(self.networks.items()):
            y, variables = network.init_with_output(jax.random.fold_in(key, i), x, train=True)
            params[name] = variables["params"]
            batch_stats[name] = variables.get("batch_stats", {})
            x = _vectors(y)
        if encoder is not None:
            params["encoder"] = encoder["params"]
            batch_stats["encoder"] = encoder["batch_stats"]
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
        """Returns the mean loss of this device's anchors.

        Args:
          params: as returned by `init`.
          extra: as returned by `init`.
          views: augmented and normalized views, per size.
          boxes: crop boxes, per size.
          keys: [B], one per image, for randomness inside the networks.
          progress: progress of the training run.

        Returns:
          The loss and (extra after the forward pass, metrics of the global batch).
        """

    def after_update(self, params: Tree, extra: Tree, progress: Progress) -> Tree:
        """Returns `extra` after the optimizer's step: moving averages and queues updated."""
        del params, progress
        return extra

    def param_groups(self, params: Tree) -> Tree:
        """Returns a label per leaf.

        One of `default`; `constant`, for a constant learning rate; `no_decay`, without weight
        decay; `late`, not trained in the first `late_epochs` epochs; `frozen`, never trained, such
        as what the encoder's attribute `frozen` names.
        """
        groups = jax.tree.map(lambda _: "default", params)
        for name in getattr(self.networks.get("encoder"), "frozen", ()):
            groups["encoder"][name] = jax.tree.map(lambda _: "frozen", params["encoder"][name])
        return groups

    @abc.abstractmethod
    def embed(self, params: Tree, extra: Tree, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns what the loss compares, in inference mode.

        The loss takes the distance from an anchor to another view's target, both scaled to unit
        length.

        Args:
          params: as returned by `init`.
          extra: as returned by `init`.
          images: [B, S, S, 3] normalized.

        Returns:
          (anchors, targets), [B, D] each, not normalized.
        """

    def encoder_variables(self, params: Tree, extra: Tree) -> Tree:
        """Returns the variables to evaluate, as taken by `networks["encoder"].apply`."""
        return {"params": params["encoder"], "batch_stats": extra["batch_stats"]["encoder"]}

    def psi(self, boxes: Views) -> jax.Array:
        """Graded similarity [B, V, W] of all views to the global ones (thesis, eq. 5)."""
        settings = self.config.similarity
        anchors = jnp.concatenate(list(boxes.values()), axis=1)
        return similarity.pairwise(anchors, boxes["global"], settings.measure, settings.threshold)

    @property
    def late_epochs(self) -> float:
        """Epochs at the start in which parameters labeled `late` are not trained."""
        return 0.0

    @property
    def is_graded(self) -> bool:
        """Whether the loss is graded."""
        return self.config.similarity.measure != "none"

    @property
    def grading(self) -> losses.Grading:
        """The form of grading."""
        return losses.Grading(self.config.similarity.form, self.config.similarity.margin)

    def forward(
        self,
        params: Tree,
        batch_stats: Tree,
        x: jax.Array,
        train: bool = True,
        keys: jax.Array | None = None,
    ) -> tuple[list[jax.Array], Tree]:
        """Applies the networks in sequence.

        Args:
          params: {name: parameters}; may lack the last networks, as a target network does.
          batch_stats: {name: statistics}.
          x: [N, S, S, 3].
          train: whether BatchNorm uses batch statistics.
          keys: [N], one per image, for randomness inside the encoder; without them it has none.

        Returns:
          The outputs of these networks, [N, F] each, and the updated statistics.
        """
        outputs, updated = [], {}
        for name, network in self.networks.items():
            if name not in params:
                break
            variables = {"params": params[name], "batch_stats": batch_stats[name]}
            if name == "encoder":
                x, updated[name] = self._encode(variables, x, train, keys)
            else:
                y, changes = network.apply(variables, x, train=train, mutable=["batch_stats"])
                x, updated[name] = _vectors(y), changes.get("batch_stats", {})
            outputs.append(x)
        return outputs, updated

    def _encode(
        self, variables: Tree, x: jax.Array, train: bool, keys: jax.Array | None
    ) -> tuple[jax.Array, Tree]:
        """Returns representations [N, F] and updated statistics."""

        def encode(x: jax.Array, keys: jax.Array | None) -> tuple[jax.Array, Tree]:
            network = self.networks["encoder"]
            y, changes = network.apply(variables, x, train, keys, mutable=["batch_stats"])
            return _vectors(y), changes.get("batch_stats", {})

        chunks = self.config.loss.chunks if train else 1
        if chunks == 1:
            return encode(x, keys)
        parts = jax.tree.map(lambda a: a.reshape(chunks, -1, *a.shape[1:]), (x, keys))
        # Backward, each chunk is encoded again, with the gradient of its representations.
        pooled = lax.map(jax.checkpoint(lambda part: encode(*part)[0]), parts)
        return pooled.reshape(len(x), -1), variables["batch_stats"]


def each_view(views: Views) -> Iterator[jax.Array]:
    """Yields every view, [B, S, S, 3], the global ones first."""
    for part in views.values():
        for view in range(part.shape[1]):
            yield part[:, view]


def each_size(views: Views, keys: jax.Array) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields the views of each size, [W * B, S, S, 3], one view after the other, and their keys."""
    first = 0
    for part in views.values():
        num_views = part.shape[1]
        of_views = [view_keys(keys, first + view) for view in range(num_views)]
        yield part.swapaxes(0, 1).reshape(-1, *part.shape[2:]), jnp.concatenate(of_views)
        first += num_views


def by_image(outputs: jax.Array, num_images: int) -> jax.Array:
    """[W * B, F], one view after the other, -> [B, W, F]."""
    return outputs.reshape(-1, num_images, outputs.shape[-1]).swapaxes(0, 1)


def view_keys(keys: jax.Array, view: int) -> jax.Array:
    """Returns the keys [B] of a view of all images, from those of the images."""
    return jax.vmap(lambda key: jax.random.fold_in(key, view))(keys)


def create_projector(
    config: ml_collections.ConfigDict, last_bn_scale: bool, hidden_bn: bool = True
) -> Projector:
    """Creates the projector of the group `projector`; the other arguments as in `Projector`."""
    projector = config.projector
    return Projector(
        projector.num_layers,
        projector.hidden_dim,
        projector.out_dim,
        projector.last_bn,
        last_bn_scale=last_bn_scale,
        hidden_bn=hidden_bn,
        dtype=config.encoder.dtype,
    )


def create_predictor(config: ml_collections.ConfigDict) -> Predictor:
    """Creates the predictor of the group `predictor`."""
    return Predictor(
        config.predictor.hidden_dim, config.projector.out_dim, dtype=config.encoder.dtype
    )


def metrics(z: jax.Array, psi: jax.Array) -> dict[str, jax.Array]:
    """Computes metrics of the global batch from this device's embeddings and similarities.

    All are scalars but `embeddings`, [N, W, D] of every s-th image, for `gsjax.train.monitors`.

    `embedding_std` is the standard deviation of each coordinate of the normalized embeddings over
    the batch, averaged over coordinates: 1/sqrt(D) when they fill the sphere, 0 at collapse
    (SimSiam, section 4.1).

    Args:
      z: [B, W, D] embeddings of the global views.
      psi: [B, V, W] graded similarity.
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
        "embeddings": lax.all_gather(z[:: _stride(len(z))], AXIS, tiled=True),
    }


def _stride(local: int) -> int:
    """Distance between monitored images: it divides each device's part of the batch."""
    wanted = max(local * lax.axis_size(AXIS) // MONITORED, 1)
    return max(stride for stride in range(1, wanted + 1) if local % stride == 0)


def _vectors(y: jax.Array | Outputs) -> jax.Array:
    return y.pooled if isinstance(y, Outputs) else y

"""Encoders whose weights come from a file of another program."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from gsjax.evaluate.encoder import Loaded, Pretrained
from gsjax.methods.base import Method
from gsjax.models import create_encoder, weights
from gsjax.models.weights.formats import Found
from gsjax.runtime import parallel


class NoHeads(Method):
    """Stands for the unknown method of an encoder without heads: compares representations."""

    distance = "|h_i - h_j|"

    def __init__(self, encoder: nn.Module, config: ml_collections.ConfigDict) -> None:
        super().__init__({"encoder": encoder}, config)

    @property
    def is_graded(self) -> bool:
        """Unknown, so not."""
        return False

    def loss(self, params, extra, views, boxes, keys, progress):
        """Not known."""
        raise NotImplementedError("an encoder without heads has no loss")

    def embed(self, params, extra, images: jax.Array):
        """See `Method.embed`; returns representations twice."""
        (h,), _ = self.forward(params, extra["batch_stats"], images, train=False)
        return h, h


def read(config: ml_collections.ConfigDict, mesh: Mesh, heads: bool) -> Loaded:
    """Reads the encoder of `encoder.weights`.

    Args:
      config: the whole configuration.
      mesh: the devices.
      heads: whether to add a `NoHeads`.

    Raises:
      UserError: the file cannot be read, or is not of the configured architecture.
    """
    module = create_encoder(config)
    found = weights.find(config.encoder.weights, config.encoder.network)
    target = abstract(module, found.image_size)
    variables = jax.device_put(weights.variables(found, target), parallel.replicated(mesh))
    pretrained = None
    if heads:
        params, batch_stats = ({"encoder": variables[part]} for part in ("params", "batch_stats"))
        pretrained = Pretrained(NoHeads(module, config), params, {"batch_stats": batch_stats})
    unused = weights.unused(found, target)
    lines = _describe(found, len(weights.used(found, target)), unused)
    return Loaded(
        module,
        variables,
        found.content.path,
        found.format,
        pretrained,
        tuple(unused),
        lines,
        found.doubt,
    )


def _describe(found: Found, num_used: int, unused: list[str]) -> tuple[str, ...]:
    """Returns lines about what is taken from a file."""
    network = "target network" if found.network.is_target else "encoder"
    place = f" under {found.network.prefix}" if found.network.prefix else ""
    lines = [f"weights  {found.format}: {network}{place}, {num_used} tensors"]
    if found.doubt:
        lines.append(f"note     {found.doubt}")
    if unused:
        lines.append(f"unused   {len(unused)} tensors: {weights.describe_unused(unused)}")
    return tuple(lines)


def abstract(module: nn.Module, image_size: int) -> Any:
    """Returns the shapes of an encoder's variables, as {"params": ..., "batch_stats": ...}."""
    images = jnp.zeros((2, image_size, image_size, 3))
    key = jax.random.key(0, impl="threefry2x32")
    shapes = jax.eval_shape(lambda: module.init(key, images, train=True))
    return {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}

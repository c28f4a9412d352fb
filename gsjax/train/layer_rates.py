"""Learning rates that decay from layer to layer, for fine-tuning."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from gsjax.errors import UserError


def layer_rates(encoder: nn.Module, params: Mapping[str, Any], rate: float, decay: float) -> Any:
    """Returns the learning rate of every parameter of an encoder.

    Layer-wise decay as in BEiT (arXiv:2106.08254): of n layers, layer i = 0, 1, ... has
    rate * decay^(n - i); what belongs to no layer, such as the last normalization of a vision
    transformer, has `rate`. For a transformer of L blocks n is L + 1: the embeddings are layer 0,
    so that block b has rate * decay^(L - b). The layers of a ResNet are its stem and stages.

    Args:
      encoder: the encoder, with the attribute `layers` if `decay` is not 1; see `gsjax.models`.
      params: its parameters.
      rate: rate of the last layers.
      decay: 1 for the same rate everywhere.

    Returns:
      A tree like `params` of floats; 0 for what the encoder never trains (`frozen`).

    Raises:
      UserError: the encoder does not list its layers.
    """
    rates = dict.fromkeys(params, rate)
    if decay != 1:
        layers = getattr(encoder, "layers", None)
        if layers is None:
            raise UserError(
                f"finetune.layer_decay={decay:g}, but {type(encoder).__name__} does not list its "
                "layers: omit it"
            )
        for i, names in enumerate(layers):
            rates |= dict.fromkeys(names, rate * decay ** (len(layers) - i))
    rates |= dict.fromkeys(getattr(encoder, "frozen", ()), 0.0)
    return {name: jax.tree.map(lambda _, r=rates[name]: r, part) for name, part in params.items()}

"""The table of encoders. Importing it loads neither an encoder nor JAX.

An encoder is one file with `create(settings, remat)`, which takes the `encoder` group and returns a
Flax module: (images [N, S, S, 3], train) -> `gsjax.models.outputs.Outputs`. It may have BatchNorm
statistics, in the collection `batch_stats`.
"""

from typing import Any

import ml_collections

from gsjax.config.schema import Row, shapes

_RESNET = {
    "encoder.width": shapes(
        16, "channels of the first stage; 64 in the ResNet paper", low=1, high=2**16
    ),
    "encoder.stem": shapes(
        "cifar",
        "imagenet: 7x7 stride 2 and max-pool; cifar: 3x3 stride 1",
        choices=("imagenet", "cifar"),
    ),
    "encoder.zero_init_residual": shapes(
        True, "the last BN scale of each residual block starts at 0"
    ),
}

ENCODERS: dict[str, Row] = {
    name: Row("gsjax.models.resnet", f"ResNet with {name.removeprefix('resnet')} layers", _RESNET)
    for name in ("resnet18", "resnet34", "resnet50", "resnet101")
}


def create_encoder(config: ml_collections.ConfigDict) -> Any:
    """Creates the encoder named by `config.encoder.name`; float64 needs `jax_enable_x64`."""
    return ENCODERS[config.encoder.name].load()(config.encoder, config.remat)

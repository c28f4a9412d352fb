"""The table of encoders. Importing it loads neither an encoder nor JAX.

An encoder is one file with `create(settings, remat)`, which takes the `encoder` group and returns a
Flax module: (images [N, S, S, 3], train) -> `gsjax.models.outputs.Outputs`. It may have BatchNorm
statistics, in the collection `batch_stats`.
"""

import dataclasses
import importlib
from types import ModuleType
from typing import Any

import ml_collections

from gsjax.config.schema import Row, shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderRow(Row):
    """A row of the encoder table.

    Attributes:
      names: module with the names of its weights in PyTorch, such as
        `gsjax.models.weights.resnet`; without one, its weights can be neither exported nor read
        from files of other programs.
    """

    names: str = ""

    def load_names(self) -> ModuleType:
        """Imports the module that `names` names."""
        return importlib.import_module(self.names)


_RESNET = {
    "encoder.width": shapes(
        16, "channels of the first stage; 64 in the ResNet paper", low=1, high=2**16
    ),
    "encoder.stem": shapes(
        "cifar",
        "imagenet: 7x7 stride 2 and max-pool; cifar: 3x3 stride 1",
        choices=("imagenet", "cifar"),
    ),
    "encoder.padding": shapes(
        "torch",
        "torch: as PyTorch; same_pool, same: the stem's pool, or all, as SAME in TensorFlow (ports "
        "of SimCLR, BYOL); solo: cifar stem padded by 2 (solo-learn)",
        choices=("torch", "same_pool", "same", "solo"),
    ),
    "encoder.zero_init_residual": shapes(
        True, "the last BN scale of each residual block starts at 0"
    ),
}

ENCODERS: dict[str, EncoderRow] = {
    name: EncoderRow(
        "gsjax.models.resnet",
        f"ResNet with {name.removeprefix('resnet')} layers",
        _RESNET,
        names="gsjax.models.weights.resnet",
    )
    for name in ("resnet18", "resnet34", "resnet50", "resnet101")
}


def create_encoder(config: ml_collections.ConfigDict) -> Any:
    """Creates the encoder named by `config.encoder.name`; float64 needs `jax_enable_x64`."""
    return ENCODERS[config.encoder.name].load()(config.encoder, config.remat)

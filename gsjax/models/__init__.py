"""The table of encoders. Importing it loads neither an encoder nor JAX.

An encoder is one file with `create(settings, remat)`, which takes the `encoder` group and returns a
Flax module: (images [N, H, W, 3], train, keys) -> `gsjax.models.outputs.Outputs`. It may have
BatchNorm statistics, in the collection `batch_stats`. In training it may draw random numbers from
`keys` [N], one per image; without them it draws none. An attribute `frozen` names top-level
parameters that are never trained, an attribute `layers` lists them from input to output, one tuple
per layer, and a method `fit` adapts those that depend on the size of images.
"""

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import ml_collections

from gsjax.config.schema import Row, free, shapes
from gsjax.crops import local_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderRow(Row):
    """A row of the encoder table.

    Attributes:
      names: module with the names of its weights in PyTorch, such as
        `gsjax.models.weights.resnet`; without one, its weights can be neither exported nor read
        from files of other programs.
      batch_norm: whether its outputs in training depend on the whole batch.
      adjustable: its settings in which a run may differ from the encoder that it starts from.
    """

    names: str = ""
    batch_norm: bool = True
    adjustable: frozenset[str] = frozenset()

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
        adjustable=frozenset({"zero_init_residual"}),
    )
    for name in ("resnet18", "resnet34", "resnet50", "resnet101")
}

VIT_WIDTHS = {"vit_tiny": 192, "vit_small": 384, "vit_base": 768}

_VIT = {
    "encoder.patch_size": shapes(16, "side of a patch in pixels", low=1, high=256),
    "encoder.depth": shapes(12, "blocks", low=1, high=1000),
    "encoder.heads": shapes(0, "attention heads; 0: one per 64 channels", high=2**10),
    "encoder.positions": shapes(
        "learned",
        "position embedding; sincos: fixed (MoCo v3)",
        choices=("learned", "sincos"),
    ),
    "encoder.interpolation": shapes(
        "torch",
        "of positions for other image sizes; torch: bicubic as in DINO; antialias: as in timm",
        choices=("torch", "antialias"),
    ),
    "encoder.pool": shapes(
        "token",
        "representation: the class token, or the mean of the patches",
        choices=("token", "mean"),
    ),
    "encoder.drop_path": shapes(
        0.0, "rate at which the last block is skipped, per image; less in earlier ones", high=0.99
    ),
    "encoder.layer_scale": shapes(
        0.0, "initial scale of the blocks' branches; 0: no scales (DINOv2 has them)"
    ),
    "encoder.freeze_patches": shapes(
        False, "keep the initial patch embedding, for stability (MoCo v3)"
    ),
    "encoder.initializer": shapes(
        "normal",
        "initial weights: normal with std 0.02 (DINO), or xavier (MoCo v3)",
        choices=("normal", "xavier"),
    ),
    "encoder.attention": free(
        "xla",
        "attention by xla or, for bfloat16 on NVIDIA GPUs, cudnn",
        choices=("xla", "cudnn"),
    ),
}


def _check_vit(config: ml_collections.ConfigDict) -> Iterator[str]:
    settings, patch = config.encoder, config.encoder.patch_size
    width = VIT_WIDTHS[settings.name]
    if settings.heads and width % settings.heads:
        yield f"encoder.heads is {settings.heads}; it must divide {width}, the encoder's width"
    if settings.attention == "cudnn" and settings.dtype != "bfloat16":
        yield "encoder.attention=cudnn needs encoder.dtype=bfloat16"
    sizes = {"data.image_size": config.data.image_size}
    if config.crops.local_views:
        sizes["crops.local_size"] = local_size(config)
    for key, size in sizes.items():
        if size % patch:
            near = max(round(size / patch), 1) * patch
            yield (
                f"{key} is {size}, but must be a multiple of the {patch} pixels of a patch "
                f"(encoder.patch_size); set {key}={near}"
            )


ENCODERS |= {
    name: EncoderRow(
        "gsjax.models.vit",
        f"vision transformer with {width} channels",
        _VIT,
        _check_vit,
        names="gsjax.models.weights.vit",
        batch_norm=False,
        adjustable=frozenset(
            {"drop_path", "freeze_patches", "initializer", "interpolation", "pool", "positions"}
        ),
    )
    for name, width in VIT_WIDTHS.items()
}


def create_encoder(config: ml_collections.ConfigDict) -> Any:
    """Creates the encoder named by `config.encoder.name`; float64 needs `jax_enable_x64`."""
    return ENCODERS[config.encoder.name].load()(config.encoder, config.remat)


def fit_image_size(encoder: Any, variables: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Returns an encoder's variables with parameters for images of another size."""
    if not hasattr(encoder, "fit"):
        return dict(variables)
    return {**variables, "params": encoder.fit(variables["params"], image_size)}

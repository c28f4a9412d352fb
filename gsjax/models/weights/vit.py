"""timm's names of the vision transformers in `gsjax.models.vit`, and what their shapes say.

DINO, DINOv2 and MoCo v3 use the same names.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gsjax.config.schema import Value
from gsjax.models import VIT_WIDTHS
from gsjax.models.weights.family import Format

MARKS = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
"""Every vision transformer has these keys."""

CHILDREN: tuple[tuple[str, ...], ...] = ()
"""No known format numbers the children."""

OVERRIDABLE = {"encoder.heads", "encoder.interpolation"}
"""Settings of weights that the shapes do not tell, so that the command line may replace them."""

_TIMM_NAME = re.compile(r"(?:deit|vit)_(tiny|small|base)_patch\d+_(?:\d+|dinov2)(?:\..*)?")

# Of architectures that gsjax does not have.
_OTHER = ("register_tokens", "reg_token", "dist_token", "norm_pre.weight", "fc_norm.weight")


_AUGREG = (
    "does not tell how images are normalized; timm's AugReg models need data.mean=0.5,0.5,0.5 "
    "data.std=0.5,0.5,0.5"
)


def module_name(path: str) -> str:
    """Returns timm's name of a module, such as `blocks_0.attn_qkv`."""
    name = re.sub(r"^blocks_(\d+)", r"blocks.\1", path)
    return (
        name.replace("attn_", "attn.").replace("mlp_", "mlp.").replace("embed_proj", "embed.proj")
    )


def timm_encoder(architecture: str) -> str | None:
    """Returns `encoder.name` of an architecture of timm, or None if it is another one."""
    match = _TIMM_NAME.fullmatch(architecture)
    return f"vit_{match[1]}" if match else None


def settings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Value]:
    """Returns the settings of the encoder that has these shapes, by timm's names.

    Raises:
      ValueError: gsjax has no such encoder.
    """
    patch = shapes[MARKS[0]]
    if len(patch) != 4 or patch[1] != 3 or patch[2] != patch[3]:
        raise ValueError(f"{MARKS[0]} is {list(patch)}, but should be [channels, 3, side, side]")
    for name in _OTHER:
        if name in shapes:
            raise ValueError(f"{name} belongs to an architecture that gsjax does not have")
    names = {width: name for name, width in VIT_WIDTHS.items()}
    if patch[0] not in names:
        raise ValueError(
            f"{MARKS[0]} has {patch[0]} channels; gsjax has {', '.join(map(str, names))}"
        )
    table = shapes.get("pos_embed", ())
    side = math.isqrt(max(table[1] - 1, 0)) if len(table) == 3 else 0
    if not side or table[1] != 1 + side**2:
        raise ValueError(f"pos_embed is {list(table)}, but should be [1, 1 + n * n, channels]")
    blocks = {match[0] for key in shapes if (match := re.match(r"blocks\.\d+\.", key))}
    return {
        "encoder.name": names[patch[0]],
        "encoder.patch_size": patch[2],
        "encoder.depth": len(blocks),
        "encoder.heads": 0,
        "encoder.interpolation": "torch",
        "encoder.positions": "learned",
        # Any positive value: the scales come from the file.
        "encoder.layer_scale": 1e-5 if "blocks.0.ls1.gamma" in shapes else 0.0,
        "data.image_size": side * patch[2],
    }


def plain_format(
    shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]
) -> Format:
    """Returns the format of a file with an encoder alone.

    Args:
      shapes: {key: shape} of its tensors.
      read: returns the tensor of a key.
    """
    if "mask_token" in shapes:
        if "blocks.0.ls1.gamma" not in shapes:
            return Format("unknown source")
        return Format("DINOv2", {"data.image_size": 224, "features.interpolation": "bicubic"})
    if "head.weight" in shapes:
        return Format("timm", {"encoder.interpolation": "antialias"}, _AUGREG)
    if not np.any(read("pos_embed")[:, 0]):  # fixed positions
        return Format("MoCo v3")
    return Format("DINO", {"features.interpolation": "bicubic"})


def of_format(name: str, found: Mapping[str, Value]) -> dict[str, Value]:
    """Returns the settings of an encoder in a format, beyond those that its shapes tell."""
    if name != "MoCo v3":
        return {}
    heads: dict[str, Value] = {"encoder.heads": 12} if found["encoder.name"] == "vit_small" else {}
    return {"encoder.positions": "sincos", **heads}


def of_timm(config: Mapping[str, Any]) -> dict[str, Value]:
    """Returns the settings of an encoder that timm's `config.json` tells.

    Raises:
      ValueError: it has an impossible value.
    """
    found: dict[str, Value] = {"encoder.interpolation": "antialias"}
    arguments = dict(config.get("model_args", {}))
    if "num_heads" in arguments:
        found["encoder.heads"] = int(arguments["num_heads"])
    if arguments.get("global_pool", "token") == "avg":
        found["encoder.pool"] = "mean"
    return found


def architecture(settings: Any) -> str:
    """Returns the name of a `config.encoder` group in timm; `timm_config` has what differs."""
    return f"{settings.name}_patch16_224"


def timm_config(settings: Any, image_size: int) -> dict[str, Any]:
    """Returns what timm's `config.json` says about an encoder."""
    arguments = {
        "img_size": image_size,
        "patch_size": settings.patch_size,
        "depth": settings.depth,
        "num_heads": settings.heads or VIT_WIDTHS[settings.name] // 64,
        **({"init_values": settings.layer_scale} if settings.layer_scale else {}),
        # timm builds the model from these alone: without `fc_norm` it would normalize the mean.
        **({"global_pool": "avg", "fc_norm": False} if settings.pool == "mean" else {}),
    }
    return {
        "global_pool": arguments.get("global_pool", "token"),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "model_args": arguments,
    }

"""torchvision's names of the ResNets in `gsjax.models.resnet`, and what their shapes say."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gsjax.config.schema import Value
from gsjax.models.weights.family import Format

MARKS = ("conv1.weight", "layer1.0.conv1.weight")
"""Every ResNet has these keys."""

CHILDREN = (
    ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"),
    ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),
)
"""What nn.Sequential(*children) numbers, in the ResNets of lightly and of torchvision."""

OVERRIDABLE = {"encoder.padding"}
"""Settings of weights that the shapes do not tell, so that the command line may replace them."""

_TIMM_NAME = re.compile(r"(?:tv_|gluon_|ssl_|swsl_)?(resnet\d+)(?:_v1b)?(?:\..*)?")


def module_name(path: str) -> str:
    """Returns torchvision's name of a module, such as `layer1_0.downsample_bn`."""
    name = re.sub(r"^layer(\d)_(\d+)", r"layer\1.\2", path)
    return name.replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")


def settings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Value]:
    """Returns the settings of the encoder that has these shapes, by torchvision's names.

    The name counts layers as the paper does: `resnet50` has 48 convolutions in its blocks.

    Raises:
      ValueError: the first convolution has an impossible shape.
    """
    blocks = {match[0] for key in shapes if (match := re.match(r"layer\d+\.\d+", key))}
    in_block = 3 if "layer1.0.conv3.weight" in shapes else 2
    if len(shapes[MARKS[0]]) != 4:
        raise ValueError(f"{MARKS[0]} is {list(shapes[MARKS[0]])}, but should have 4 dimensions")
    width, _, size, _ = shapes[MARKS[0]]
    return {
        "encoder.name": f"resnet{2 + in_block * len(blocks)}",
        "encoder.width": width,
        "encoder.stem": "imagenet" if size == 7 else "cifar",
        "data.image_size": 224 if size == 7 else 32,
    }


def timm_encoder(architecture: str) -> str | None:
    """Returns `encoder.name` of an architecture of timm, or None if it is another one."""
    match = _TIMM_NAME.fullmatch(architecture)
    return match[1] if match else None


def plain_format(
    shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]
) -> Format:
    """Returns the format of a file with an encoder alone."""
    del shapes, read
    return Format("torchvision")


def of_format(name: str, found: Mapping[str, Value]) -> dict[str, Value]:
    """Returns the settings of an encoder in a format, beyond those that its shapes tell."""
    is_padded = name == "solo-learn" and found["encoder.stem"] == "cifar"
    return {"encoder.padding": "solo"} if is_padded else {}


def of_timm(config: Mapping[str, Any]) -> dict[str, Value]:
    """Returns the settings of an encoder that timm's `config.json` tells."""
    del config
    return {}


def named_child(key: str, children: tuple[str, ...]) -> str:
    """Returns the name of a key that begins with the number of a child."""
    number, _, rest = key.partition(".")
    if not number.isdecimal() or int(number) >= len(children):
        return key
    return f"{children[int(number)]}.{rest.replace('shortcut.', 'downsample.')}"


def architecture(settings: Any) -> str | None:
    """Returns the name of a `config.encoder` group in torchvision and timm, or None."""
    is_theirs = (settings.width, settings.stem, settings.padding) == (64, "imagenet", "torch")
    return settings.name if is_theirs else None


def timm_config(settings: Any, image_size: int) -> dict[str, Any]:
    """Returns what timm's `config.json` says about an encoder."""
    del settings, image_size
    return {"global_pool": "avg", "first_conv": "conv1", "classifier": "fc"}


def detectron2_name(key: str) -> str:
    """Returns Detectron2's name of a tensor, as in MoCo's `convert-pretrain-to-detectron2.py`."""
    name = key if key.startswith("layer") else f"stem.{key}"
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")

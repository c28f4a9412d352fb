"""What a module with the names of an encoder's weights has, such as `gsjax.models.weights.resnet`.

A family is a module; `Family` lists what others use of it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from gsjax.config.schema import Value


class Format(NamedTuple):
    """Who wrote a file.

    Attributes:
      name: in words.
      settings: {dotted key: value} that belong to its weights.
      doubt: what the file leaves open, to follow its name in a sentence; "" if nothing.
    """

    name: str
    settings: Mapping[str, Value] = {}
    doubt: str = ""


class Family(Protocol):
    """Names and shapes of a kind of encoder in PyTorch.

    A family may also have `detectron2_name(key)`, which returns Detectron2's name of a tensor.

    Attributes:
      MARKS: two keys that every such encoder has.
      CHILDREN: names of what `nn.Sequential(*children)` numbers, for each known order.
      OVERRIDABLE: settings of weights that the command line may replace.
    """

    MARKS: tuple[str, str]
    CHILDREN: tuple[tuple[str, ...], ...]
    OVERRIDABLE: set[str]

    def module_name(self, path: str) -> str:
        """Returns PyTorch's name of a Flax module, `module.module`."""

    def settings(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Value]:
        """Returns the settings that the shapes tell, among them `data.image_size`.

        Raises:
          ValueError: gsjax has no such encoder.
        """

    def named_child(self, key: str, children: tuple[str, ...]) -> str:
        """Returns the name of a key that begins with the number of a child."""

    def plain_format(
        self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]
    ) -> Format:
        """Returns the format of a file with an encoder alone."""

    def of_format(self, name: str, found: Mapping[str, Value]) -> dict[str, Value]:
        """Returns the settings of an encoder in a format, beyond those that its shapes tell."""

    def timm_encoder(self, architecture: str) -> str | None:
        """Returns `encoder.name` of an architecture of timm, or None."""

    def of_timm(self, config: Mapping[str, Any]) -> dict[str, Value]:
        """Returns the settings of an encoder that timm's `config.json` tells."""

    def architecture(self, settings: Any) -> str | None:
        """Returns the name of a `config.encoder` group in timm, or None."""

    def timm_config(self, settings: Any, image_size: int) -> dict[str, Any]:
        """Returns what timm's `config.json` says about an encoder."""

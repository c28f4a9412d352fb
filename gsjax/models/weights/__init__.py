"""Weights of encoders in files of other programs, in and out. Imports neither JAX nor TensorFlow.

`find` recognizes what a file holds, `variables` turns it into those of a Flax encoder, and
`names.to_tensors` is the way back. What the weights of an encoder are called there is in the module
that its row names.
"""

import collections
from types import ModuleType
from typing import Any

from gsjax.errors import UserError
from gsjax.models import ENCODERS
from gsjax.models.weights import formats, names, reader
from gsjax.models.weights.formats import Found
from gsjax.runtime import files

_MAX_GROUPS = 8  # of unused keys in a message


def family(encoder: str) -> ModuleType:
    """Returns the module with the names of an encoder's weights in other programs."""
    return ENCODERS[encoder].load_names()


def find(path: str, network: str = "auto") -> Found:
    """Finds the encoder in a weights file or folder.

    Args:
      path: a `.safetensors`, `.pth`, `.pt` or `.pkl` file, or a folder as timm and gsjax write it.
      network: online, target, or auto for the one that is published as the encoder.

    Raises:
      UserError: there is no such file, it cannot be read, or it holds no encoder that gsjax has.
    """
    return formats.recognize(reader.read(path), network)


def variables(found: Found, target: Any) -> Any:
    """Returns the encoder's variables, as NumPy arrays.

    Args:
      found: what `find` returned.
      target: its variables or their shapes, as {"params": ..., "batch_stats": ...}.

    Raises:
      UserError: a key is missing, a tensor does not have the target's shape, or a module of the
        encoder has tensors that the target does not know.
    """
    content, prefix = found.content, found.network.prefix

    def shown(key: str) -> str:
        return f"{files.shown(content.path)}: {reader.shown(prefix + key)}"

    known = names.to_shapes(target, found.network.family.module_name)
    modules = {key.split(".")[0] for key in known}
    for key in found.shapes():
        if key not in known and key.split(".")[0] in modules and not formats.is_counter(key):
            raise UserError(f"{shown(key)} belongs to an architecture that gsjax does not have")
    return names.to_variables(
        target,
        found.shapes(),
        lambda key: content.tensors[prefix + key].array(),
        found.network.family.module_name,
        shown,
    )


def used(found: Found, target: Any) -> list[str]:
    """Returns the keys of the file that `variables` reads."""
    shapes = names.to_shapes(target, found.network.family.module_name)
    return [found.network.prefix + key for key in shapes]


def unused(found: Found, target: Any) -> list[str]:
    """Returns the other keys of the file, without counters of batches."""
    read = set(used(found, target))
    return [key for key in found.content.tensors if key not in read and not formats.is_counter(key)]


def describe_unused(keys: list[str]) -> str:
    """Summarizes keys by their beginnings."""
    groups = collections.Counter(_group(key) for key in keys)
    parts = [
        f"{group} ({count})" if count > 1 else group
        for group, count in list(groups.items())[:_MAX_GROUPS]
    ]
    more = f" and {len(groups) - _MAX_GROUPS} more groups" if len(groups) > _MAX_GROUPS else ""
    return f"{', '.join(map(reader.shown, parts))}{more}"


def _group(key: str) -> str:
    parts = key.split(".")
    kept = [part for part in parts[:-1] if part in formats.WRAPPERS]
    rest = [part for part in parts if part not in kept]
    return ".".join([*kept, *rest[:1]]) + (".*" if len(rest) > 1 else "")

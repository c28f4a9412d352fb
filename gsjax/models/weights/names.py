"""Between the variables of a Flax encoder and tensors with PyTorch's names and layouts."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from gsjax.errors import UserError

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
# From PyTorch's layout to Flax's: convolutions OIHW -> HWIO, matrices [out, in] -> [in, out].
_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}


def to_variables(
    target: Any,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    module_name: Callable[[str], str],
    shown: Callable[[str], str],
) -> Any:
    """Returns an encoder's variables from tensors with PyTorch's names.

    Args:
      target: {collection: nested dictionaries of arrays or their shapes}.
      shapes: {key: shape} of the tensors.
      read: returns the tensor of a key.
      module_name: maps `module.module` of a variable to PyTorch's name.
      shown: formats a key for messages.

    Returns:
      A tree like `target` of NumPy arrays in its dtypes.

    Raises:
      UserError: a key is missing, or a tensor has another shape or cannot be read.
    """
    variables: dict[str, Any] = {collection: {} for collection in target}
    for path, leaf in _leaves(target):
        key, axes = _key(path, module_name), _axes(path, leaf.ndim)
        wanted = _shape(leaf, axes)
        if key not in shapes:
            raise UserError(f"{shown(key)} is missing; it should be {list(wanted)}")
        if tuple(shapes[key]) != wanted:
            raise UserError(f"{shown(key)} is {list(shapes[key])}, but should be {list(wanted)}")
        place = variables
        for name in path[:-1]:
            place = place.setdefault(name, {})
        try:
            value = read(key)
        except ValueError as error:
            raise UserError(f"{shown(key)} cannot be read: {error}") from error
        if not np.isfinite(value.astype(np.float32)).all():
            raise UserError(f"{shown(key)} holds values that are not finite")
        place[path[-1]] = np.transpose(value, axes).astype(leaf.dtype)
    return variables


def to_shapes(target: Any, module_name: Callable[[str], str]) -> dict[str, tuple[int, ...]]:
    """Returns {key: shape} of the tensors for an encoder's variables, with PyTorch's names."""
    return {
        _key(path, module_name): _shape(leaf, _axes(path, leaf.ndim))
        for path, leaf in _leaves(target)
    }


def to_tensors(variables: Any, module_name: Callable[[str], str]) -> dict[str, np.ndarray]:
    """Returns an encoder's variables under PyTorch's names and in its layouts.

    Batch normalizations also get `num_batches_tracked`, int64 0, which PyTorch expects.
    """
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in _leaves(variables):
        key = _key(path, module_name)
        value = np.asarray(leaf)
        tensors[key] = np.ascontiguousarray(np.transpose(value, np.argsort(_axes(path, leaf.ndim))))
        if path[0] == "batch_stats" and path[-1] == "mean":
            tensors[key.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
    return dict(sorted(tensors.items()))


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, Mapping):
        for name, part in tree.items():
            yield from _leaves(part, (*path, name))
    else:
        yield path, tree


def _key(path: tuple[str, ...], module_name: Callable[[str], str]) -> str:
    collection, *modules, leaf = path
    name = _LEAVES.get((collection, leaf), leaf)
    return f"{module_name('.'.join(modules))}.{name}" if modules else name


def _shape(leaf: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(leaf.shape[axes.index(i)] for i in range(leaf.ndim))


def _axes(path: tuple[str, ...], ndim: int) -> tuple[int, ...]:
    return _AXES[ndim] if path[-1] == "kernel" else tuple(range(ndim))

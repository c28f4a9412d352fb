"""Reads the encoder to evaluate: from a checkpoint of gsjax, or from a file with weights."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import optax
from etils import epath
from jax.sharding import Mesh

from gsjax.config import choices, settings
from gsjax.errors import UserError
from gsjax.evaluate import foreign
from gsjax.evaluate.encoder import Loaded, Pretrained
from gsjax.methods import create_method
from gsjax.models import ENCODERS, create_encoder, fit_image_size
from gsjax.runtime import checkpoints, files, metrics, parallel, saved_state
from gsjax.train import step


def read_encoder(
    config: ml_collections.ConfigDict, workdir: epath.Path, mesh: Mesh, heads: bool = False
) -> Loaded:
    """Reads the encoder that `encoder.weights` or else `checkpoint.load` names.

    Args:
      config: the whole configuration.
      workdir: work directory of the run.
      mesh: the devices.
      heads: whether to read the method's heads as well.

    Raises:
      UserError: there is none, it is damaged or of another architecture.
    """
    if config.encoder.weights:
        return foreign.read(config, mesh, heads)
    look = functools.partial(checkpoints.find, workdir, config.checkpoint.load)
    reader = EncoderReader(config, mesh, heads)
    checkpoint, variables, pretrained = reader.find_and_read(look)
    module = reader.method.networks["encoder"]
    return Loaded(module, variables, checkpoint, pretrained=pretrained)


def read_initial_encoder(config: ml_collections.ConfigDict, mesh: Mesh) -> Any:
    """Returns the variables of the encoder that `encoder.init` names, on every device.

    Raises:
      UserError: there is none, or it is not of the configured architecture.
    """
    path, ours = config.encoder.init, config.encoder
    overrides = {"encoder.weights": path, "encoder.network": ours.network}
    source = settings.check(settings.of_evaluation("", None, overrides))
    adjustable = {"dtype", *ENCODERS[ours.name].adjustable}
    for name, value in choices.encoder_settings(config).items():
        theirs = source.encoder[name]
        if name not in adjustable and theirs != value:
            raise UserError(
                f"encoder.init={path} has encoder.{name}={theirs}, but this run has {value}: set "
                f"encoder.{name}={theirs}"
            )
    for key in ("mean", "std"):
        if source.data[key] != config.data[key]:
            metrics.log(
                f"note     data.{key} is {config.data[key]}; for encoder.init, it was "
                f"{source.data[key]}"
            )
    loaded = read_encoder(source, files.absolute("."), mesh)
    module, size = create_encoder(config), config.data.image_size
    target = foreign.abstract(module, size)
    for line in loaded.notes:
        metrics.log(line)
    metrics.log(f"starting from the encoder in {loaded.path}, with new heads")
    variables = fit_image_size(module, loaded.variables, size)
    cast = jax.tree.map(lambda x, shape: x.astype(shape.dtype), variables, target)
    return jax.device_put(cast, parallel.replicated(mesh))


class EncoderReader:
    """Reads encoders from checkpoints, with the method's heads on request.

    The optimizer state is never read.
    """

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh, heads: bool) -> None:
        self.method = create_method(config)
        # No optimizer state is needed; that of the identity is empty.
        self._create = step.create_state_fn(config, self.method, optax.identity(), mesh)
        self._key, _ = step.keys(config)
        state = self._create.eval_shape(self._key)
        self._abstract = {"params": state.params, "extra": state.extra}
        self._heads = heads

    def find_and_read(
        self, look: Callable[[], epath.Path | None]
    ) -> tuple[epath.Path | None, Any, Pretrained | None]:
        """Reads the checkpoint that `look` finds; without one, takes the weights of step 0.

        If a concurrent training run deletes it meanwhile, reads the one `look` returns then.

        Returns:
          The checkpoint, the encoder's variables and the method with its heads, or None without
          heads; the same on all hosts.
        """
        checkpoint, restored, error = look(), None, None
        try:
            restored = self._read(checkpoint)
        except UserError as reason:
            error = reason
        if parallel.everywhere(restored is not None) and restored is not None:
            return checkpoint, *restored
        newer = look()
        if newer is None or newer == checkpoint:
            raise error or UserError(f"another process cannot restore {checkpoint}")
        return newer, *self._read(newer)

    def _read(self, checkpoint: epath.Path | None) -> tuple[Any, Pretrained | None]:
        if checkpoint is not None and not self._heads:
            return self._read_encoder(checkpoint), None
        if checkpoint is None:
            state = self._create(self._key)
            params, extra = state.params, state.extra
        else:
            parts = saved_state.read(checkpoint, self._abstract, partial=True)
            params, extra = parts["params"], parts["extra"]
        variables = self.method.encoder_variables(params, extra)
        return variables, Pretrained(self.method, params, extra) if self._heads else None

    def _read_encoder(self, checkpoint: epath.Path) -> Any:
        named = jax.tree_util.tree_map_with_path(_Leaf, self._abstract)
        chosen = self.method.encoder_variables(named["params"], named["extra"])
        target: dict[str, Any] = {}
        for leaf in jax.tree.leaves(chosen):
            leaf.put(target, leaf.value)
        parts = saved_state.read(checkpoint, target, partial=True)
        return jax.tree.map(lambda leaf: leaf.get(parts), chosen)


class _Leaf:
    """A leaf that knows its path in a tree of dictionaries."""

    def __init__(self, path: tuple, value: Any) -> None:
        self._keys, self.value = [part.key for part in path], value

    def put(self, tree: dict, value: Any) -> None:
        for key in self._keys[:-1]:
            tree = tree.setdefault(key, {})
        tree[self._keys[-1]] = value

    def get(self, tree: Any) -> Any:
        return functools.reduce(lambda part, key: part[key], self._keys, tree)

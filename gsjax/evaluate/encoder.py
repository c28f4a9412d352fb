"""An encoder on the devices, and its representations."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

import gsjax
from gsjax.data.source import Source
from gsjax.data.transforms import Transform
from gsjax.errors import UserError
from gsjax.evaluate import store
from gsjax.evaluate.features import EncodeFn, Features, create_encode_fn, extract, report
from gsjax.methods.base import Method
from gsjax.runtime import metrics, parallel


class Pretrained(NamedTuple):
    """A method with its trained variables, on every device."""

    method: Method
    params: Any
    extra: Any


class Loaded(NamedTuple):
    """An encoder with its variables.

    Attributes:
      module: the encoder.
      variables: its variables, on every device.
      path: its checkpoint or file; None for the weights of step 0.
      format: who wrote the file, in words; "" for a checkpoint.
      pretrained: the method with its heads, if they were asked for.
      unused: keys of the file that belong to something else.
      notes: lines that say what was taken from the file.
      doubt: what may be wrong with the file's format, and how to correct it; "" if nothing.
    """

    module: nn.Module
    variables: Any
    path: epath.Path | None
    format: str = ""
    pretrained: Pretrained | None = None
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    doubt: str = ""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network, its variables, and how to feed images to it.

    Attributes:
      module: images [N, S, S, 3] -> `gsjax.models.outputs.Outputs`.
      variables: its parameters and statistics, on every device.
      normalization: mean, standard deviation and dtype of its pixels.
      mesh: the devices.
      settings: settings the module was created with.
      batch_size: images encoded at once, over all devices.
      label: label of progress lines.
      folder: where representations are kept for later jobs, or None.
      check: called between batches; may raise to end an extraction.
      pretrained: the method that trained it, with its heads, or None if they are not loaded.
    """

    module: nn.Module
    variables: Any
    normalization: tuple[tuple, tuple, Any]
    mesh: Mesh
    settings: Mapping[str, Any]
    batch_size: int
    label: str = "features"
    folder: epath.Path | None = None
    check: Callable[[], None] = lambda: None
    pretrained: Pretrained | None = None

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the variables."""
        return store.digest(self.variables)

    @functools.cached_property
    def encode_fn(self) -> EncodeFn:
        """(variables, images uint8 [B, H, W, 3]) -> representations [B, F]."""
        return create_encode_fn(self.module, *self.normalization, self.mesh)

    def with_variables(self, variables: Any, check: Callable[[], None]) -> "Encoder":
        """Returns the same encoder with other variables; reuses its compiled program."""
        other = dataclasses.replace(self, variables=variables, check=check)
        other.__dict__["encode_fn"] = self.encode_fn
        return other

    def features(
        self,
        source: Source,
        transform: Transform,
        indices: np.ndarray | None = None,
        shapes: Sequence | None = None,
        need_all: bool = False,
    ) -> Features:
        """Encodes images, or reuses features from an earlier job with the same encoder.

        Args:
          source: the images.
          transform: transform of each image.
          indices: ascending int64 [n], the images to use; None for all (as with `shapes`).
          shapes: if the transform gives several shapes, a value per image that is equal only for
            equal shapes.
          need_all: whether an image that cannot be decoded is an error.
        """
        key = self._key(source, transform, indices) if self.folder else ""
        kept = store.load(self.folder, key) if self.folder else None
        if parallel.everywhere(kept is not None) and kept is not None:
            metrics.log(f"features of {source.name} are taken from an earlier job")
            return report(source, kept, need_all)
        if shapes is None:
            rows = self._extract(source, transform, self.batch_size, indices)
        else:
            rows = self._extract_by_shape(source, transform, shapes)
        report(source, rows, need_all)
        if self.folder:
            store.save(self.folder, key, rows)
        return rows

    def _key(self, source: Source, transform: Transform, indices: np.ndarray | None) -> str:
        return store.key_of(
            gsjax=gsjax.__version__,
            encoder=self.digest,
            model=dict(self.settings),
            normalization=self.normalization,
            source=source.name,
            files=store.files_digest(source),
            labeled=source.labeled,
            transform=repr(transform),
            indices="all" if indices is None else store.digest(indices),
        )

    def _extract(self, source, transform, batch_size, indices) -> Features:
        return extract(
            self.encode_fn,
            self.variables,
            source,
            transform,
            batch_size,
            self.mesh,
            f"{self.label} of {source.dataset}",
            indices,
            self.check,
        )

    def _extract_by_shape(self, source, transform, shapes) -> Features:
        """Compiles one program per image shape; one image per device at a time."""
        if jax.process_count() > 1:  # a host without an image would not know the shape
            raise UserError("images of several shapes can be encoded by a single process only")
        groups: dict[Any, list[int]] = {}
        for index, shape in enumerate(shapes):
            groups.setdefault(shape, []).append(index)
        progress = metrics.Progress(f"{self.label} of {source.dataset}", len(shapes), inner=True)
        parts = []
        for indices in groups.values():
            parts.append(self._extract(source, transform, 1, np.array(indices)))
            progress.update(sum(len(part.indices) for part in parts))
        progress.close()
        rows = Features(*(np.concatenate(c) for c in zip(*parts, strict=True)))
        order = np.argsort(rows.indices)
        return Features(*(column[order] for column in rows))

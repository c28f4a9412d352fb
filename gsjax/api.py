"""The Python interface: `gsjax.load_encoder` and `gsjax.pretrain`.

`gsjax.losses` and `gsjax.similarity` are modules of their own. These names are stable; everything
else in the package may change.
"""

import concurrent.futures
import math
import os
import pathlib
import signal
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh
from PIL import Image
from tqdm.auto import tqdm

from gsjax.config import choices, settings
from gsjax.data import input_pipeline, source, transforms
from gsjax.errors import UserError
from gsjax.evaluate import evaluation
from gsjax.evaluate.encoder import Loaded
from gsjax.evaluate.encoder_reader import read_encoder
from gsjax.evaluate.features import EncodeFn, create_encode_fn, local_rows
from gsjax.runtime import files, interrupts, parallel
from gsjax.runtime.tensorflow_setup import tf

Images = np.ndarray | Iterable[np.ndarray | Image.Image | str | os.PathLike]

_PREPROCESSING = {"data.image_size", "data.mean", "data.std"}
_BAR_DELAY = 2.0  # seconds before a progress bar appears
# Notebooks show it though their output is no terminal.
_HIDES_BAR = False if any("notebook" in kind.__module__ for kind in tqdm.__mro__) else None


class PretrainedEncoder:
    """An encoder with its weights and its preprocessing.

    Attributes:
      info: `path`, `format` (who wrote the weights), `encoder`, `image_size`, `mean`, `std`,
        `interpolation`, `short_side` and `unused` (keys of the file that belong to something else).
    """

    def __init__(
        self, config: ml_collections.ConfigDict, loaded: Loaded, mesh: Mesh, batch_size: int
    ) -> None:
        self._mesh = mesh
        self._encoder = evaluation.as_encoder(config, loaded, mesh)
        self._transform = transforms.of_config(config)
        devices = self._mesh.devices.size
        self._batch_size = math.ceil(batch_size / devices) * devices
        self._maps_fn = create_encode_fn(
            self._encoder.module, *self._encoder.normalization, mesh, part="maps"
        )
        mean, std, _ = self._encoder.normalization
        self.info: dict[str, Any] = {
            "path": str(loaded.path),
            "format": loaded.format or "gsjax",
            "encoder": dict(self._encoder.settings),
            "image_size": self._transform.size,
            "mean": mean,
            "std": std,
            "interpolation": self._transform.method,
            "short_side": self._transform.short_side,
            "unused": list(loaded.unused),
        }

    def preprocess(self, image: Any) -> np.ndarray:
        """Resizes an image and takes its center.

        Args:
          image: uint8 [H, W, 3], RGB, of any size; a Pillow image; or the path of a file.

        Returns:
          uint8 [S, S, 3], with S = `info["image_size"]`. Normalization is part of `encode`.

        Raises:
          UserError: it is none of these, or the file cannot be decoded.
        """
        if isinstance(image, (str, os.PathLike)):
            ((only,),) = self._read([files.absolute(os.fspath(image))])
            return only
        if isinstance(image, Image.Image):
            image = np.asarray(image.convert("RGB"))
        if not _is_image(image):
            raise UserError(
                "an image must be uint8 [H, W, 3], RGB, a Pillow image or a path, not "
                f"{_described(image)}"
            )
        return self._transform(tf.constant(0), tf.constant(image)).numpy()

    def encode(self, images: Images) -> np.ndarray:
        """Returns the representations of images, float32 [N, F].

        Args:
          images: what `preprocess` takes, in a list or any other iterable, which is read before the
            first image is encoded; or a batch uint8 [N, S, S, 3] that is already preprocessed.

        Raises:
          UserError: they are none of these, or a file cannot be decoded.
        """
        return self._run(images, self._encoder.encode_fn)

    def maps(self, images: Images) -> np.ndarray:
        """Returns the maps of the last stage, float32 [N, h, w, C]; see `encode`."""
        return self._run(images, self._maps_fn)

    def _run(self, images: Images, encode_fn: EncodeFn) -> np.ndarray:
        rows = []
        given = _listed(images)
        with tqdm(
            total=len(given), unit="images", delay=_BAR_DELAY, leave=False, disable=_HIDES_BAR
        ) as bar:
            for batch in self._batches(given):
                padded = np.pad(batch, [(0, self._padding(len(batch))), (0, 0), (0, 0), (0, 0)])
                encoded = encode_fn(self._encoder.variables, parallel.shard(padded, self._mesh))
                rows.append(local_rows(encoded)[: len(batch)].astype(np.float32))
                bar.update(len(batch))
        if not rows:
            raise UserError("there are no images to encode")
        return np.concatenate(rows)

    def _padding(self, count: int) -> int:
        """Returns how many images to add, so that few batch sizes are compiled."""
        devices = self._mesh.devices.size
        size = devices * 2 ** math.ceil(math.log2(max(count / devices, 1)))
        return min(size, self._batch_size) - count

    def _batches(self, images: np.ndarray | list) -> Iterator[np.ndarray]:
        size = self._transform.size
        if isinstance(images, np.ndarray):
            if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
                raise UserError(
                    f"a batch must be uint8 [N, {size}, {size}, 3], not {_described(images)}; a "
                    "list of images may have any sizes"
                )
            for begin in range(0, len(images), self._batch_size):
                yield images[begin : begin + self._batch_size]
        elif images and all(isinstance(path, (str, os.PathLike)) for path in images):
            yield from self._read([files.absolute(os.fspath(path)) for path in images])
        else:
            with concurrent.futures.ThreadPoolExecutor() as pool:
                for begin in range(0, len(images), self._batch_size):
                    part = images[begin : begin + self._batch_size]
                    yield np.stack([*pool.map(self.preprocess, part)])

    def _read(self, paths: Sequence[Any]) -> Iterator[np.ndarray]:
        found = source.from_files("images", "images", [str(path) for path in paths])
        batches = input_pipeline.test_batches(found, self._transform, self._batch_size)
        done = 0
        for batch in batches:
            index = batch["index"][batch["index"] >= 0]
            wanted = np.arange(done, min(done + self._batch_size, len(paths)))
            missing = np.setdiff1d(wanted, index)
            if len(missing):
                raise UserError(_why_unread(paths[missing[0]]))
            done += len(index)
            yield batch["image"][: len(index)]


def load_encoder(
    path: str | os.PathLike, *, network: str = "auto", batch_size: int = 64, **overrides: Any
) -> PretrainedEncoder:
    """Loads an encoder.

    Args:
      path: a work directory of gsjax or one of its checkpoints; an exported folder; a folder of
        timm (`model.safetensors`, `config.json`); or a `.safetensors`, `.pth`, `.pt` or `.pkl` file
        with a ResNet or vision transformer of torchvision, timm or a common self-supervised
        repository. No code in a file is run.
      network: of files that hold two: online (student, query) or target (teacher, key); auto for
        the one that is published as the encoder.
      batch_size: images encoded together, over all devices.
      overrides: settings such as `image_size=96` or `mean=(0, 0, 0)`; other groups as
        {"encoder.padding": "same"} or {"encoder.heads": 12} by `**`.

    Raises:
      UserError: nothing that gsjax can read is there, or an override is impossible.
    """
    if not os.fspath(path):
        raise UserError("load_encoder needs a path, not an empty string")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size must be a positive whole number, not {batch_size!r}")
    given = {"encoder.weights": os.fspath(path), "encoder.network": network}
    keys = {_key(name, "data"): _text(value) for name, value in overrides.items()}
    # Unlike the jobs, whose scores would not be those of the run.
    free = {key: keys.pop(key) for key in _PREPROCESSING.intersection(keys)}
    config = settings.of_evaluation("", None, given | keys)
    settings.override(config, free)
    settings.check(config)
    if config.encoder.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError(
            "the encoder computes in float64: call jax.config.update('jax_enable_x64', True) first"
        )
    mesh = parallel.create_mesh(jax.device_count())
    loaded = read_encoder(config, files.absolute("."), mesh)
    if loaded.doubt:
        warnings.warn(loaded.doubt, stacklevel=2)
    return PretrainedEncoder(config, loaded, mesh, batch_size)


def pretrain(
    images: str | os.PathLike,
    *,
    workdir: str | os.PathLike,
    config: str = "simclr_gs_imagenet",
    **overrides: Any,
) -> pathlib.Path:
    """Pre-trains an encoder on a folder of images without labels, as the job `pretrain` does.

    Call it again with the same arguments to resume. Like the job, it sets up JAX (64 bits only for
    `encoder.dtype=float64`, a cache of compiled programs) and, on Ctrl-C, saves its step first.

    Args:
      images: the folder, searched at any depth.
      workdir: folder for checkpoints and metrics; `load_encoder` takes it.
      config: name of a config that comes with gsjax, or path of a config file.
      overrides: settings such as `num_epochs=100`; those in groups as {"data.image_size": 96} by
        `**`.

    Returns:
      The work directory.

    Raises:
      UserError: a setting is impossible, or the folder holds no images.
      KeyboardInterrupt: Ctrl-C was pressed; the step is saved.
    """
    from gsjax.train.pretrain import pretrain as train

    chosen = settings.load(config)
    given = {
        "data.source": "folder",
        "data.data_dir": os.fspath(images),
        "data.split": "",
        "data.labeled_split": "",
        "data.test_split": "",
    }
    given |= {_key(name): _text(value) for name, value in overrides.items()}
    settings.override(chosen, given)
    settings.check(chosen)
    choices.check(chosen, [_key(name) for name in overrides])
    parallel.start(chosen.encoder.dtype, num_processes=1)
    parallel.choose_platform(chosen.platform)
    try:
        train(chosen, os.fspath(workdir))
    except interrupts.Stopped as stopped:
        if stopped.signal == signal.SIGINT:
            raise KeyboardInterrupt from stopped  # leaves notebooks and prompts alive
        raise
    return pathlib.Path(os.fspath(workdir))


def _key(name: str, group: str = "") -> str:
    """Returns the setting that a keyword names."""
    return f"{group}.{name}" if group and "." not in name else name


def _text(value: Any) -> str:
    """Returns a value as the command line would have it."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _listed(images: Any) -> np.ndarray | list:
    """Returns a batch as an array, and anything else as a list."""
    is_batch = isinstance(images, (np.ndarray, jax.Array))
    if is_batch and images.ndim:
        return np.asarray(images)
    if is_batch or isinstance(images, (str, bytes, Mapping)) or not isinstance(images, Iterable):
        raise UserError(
            f"images must be a list of arrays, a list of paths or a batch, not {_described(images)}"
        )
    return list(images)


def _why_unread(path: Any) -> str:
    shown = files.shown(path)
    if not path.exists():
        return f"there is no file {shown}"
    return f"{shown} is a folder" if path.is_dir() else f"{shown} cannot be read as an image"


def _is_image(image: Any) -> bool:
    is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8
    return is_array and image.ndim == 3 and image.shape[2] == 3 and image.size > 0


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__

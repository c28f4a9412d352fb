"""What the linear evaluation and fine-tuning share: a linear head, its training and its scores."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath
from jax import lax
from jax.sharding import Mesh

from gsjax.config import per_view
from gsjax.data import input_pipeline
from gsjax.data.source import Source
from gsjax.data.transforms import Transform
from gsjax.errors import UserError
from gsjax.evaluate.encoder import Encoder
from gsjax.runtime import checkpoints, files, memory, metrics, parallel, writers
from gsjax.train.fit import Run, fit
from gsjax.train.state import TrainState

CLAIM = "config.json"
"""The file that says whose a folder is; see `claim`."""

_WEIGHT_STD = 0.01


def create_head(key: jax.Array, shape: tuple[int, int], dtype: Any) -> dict[str, jax.Array]:
    """Returns the parameters of a head [F, C]: `kernel`, normal with std 0.01, and `bias`, 0."""
    return {
        "kernel": _WEIGHT_STD * jax.random.normal(key, shape, dtype),
        "bias": jnp.zeros(shape[1], dtype),
    }


def logits(features: jax.Array | np.ndarray, head: Mapping[str, Any]) -> jax.Array:
    """Returns the logits [N, C] of representations [N, F]."""
    product = jnp.matmul(features, head["kernel"], precision=lax.Precision.HIGHEST)
    return product + head["bias"][None]


def predict(features: np.ndarray, head: Mapping[str, Any]) -> np.ndarray:
    """Returns the five classes with the largest logits (or all if fewer), best first: [N, 5]."""
    return np.asarray(lax.top_k(logits(features, head), min(5, len(head["bias"])))[1])


def measure(
    job: str, encoder: Encoder, head: Mapping[str, Any], source: Source, transform: Transform
) -> tuple[dict[str, float], dict[str, int]]:
    """Classifies images.

    Returns:
      `<job>/top1` and `<job>/top5` in percent, and the counts `num_test` and `num_left_out`.
    """
    rows = encoder.features(source, transform)
    left_out = rows.left_out
    rows = rows.decoded()
    hits = predict(rows.feature, head) == rows.label[:, None]
    scores = {
        f"{job}/top1": 100 * float(hits[:, 0].mean()),
        f"{job}/top5": 100 * float(hits.any(axis=1).mean()),
    }
    return scores, {"num_test": len(rows.label), "num_left_out": left_out}


def num_classes(source: Source) -> int:
    """Returns the number of classes of a labeled source.

    Raises:
      UserError: it is not known.
    """
    if source.class_names:
        return len(source.class_names)
    if source.labels is None:
        raise UserError(f"{source.name} does not name its classes and is too large to count them")
    return int(source.labels.max()) + 1


def num_features(encoder: Encoder, image_size: int) -> int:
    """Returns F of an encoder's representations."""
    devices = encoder.mesh.devices.size
    images = jax.ShapeDtypeStruct((devices, image_size, image_size, 3), jnp.uint8)
    return jax.eval_shape(encoder.encode_fn, encoder.variables, images).shape[1]


def crop_and_flip(
    config: ml_collections.ConfigDict, batch_size: int, min_scale: float, flip: float
) -> ml_collections.ConfigDict:
    """Returns the config for the input pipeline and the augmentation: random crop and flip only."""
    data = config.copy_and_resolve_references()
    with data.unlocked():
        data.batch_size = batch_size
        (data.augment,) = per_view.augmentations(data.augment, 1)
        data.augment.update(
            crop="torchvision",
            interpolation="bilinear",
            min_scale=min_scale,
            max_scale=1.0,
            flip=flip,
            jitter=0.0,
            gray=0.0,
            blur=0.0,
            solarize=0.0,
        )
    return data


def claim(folder: epath.Path, what: str, encoder: Encoder, protocol: Mapping[str, Any]) -> None:
    """Claims a folder for an encoder and settings; moves what another one left there aside.

    Args:
      folder: folder of the job.
      what: what is in it, in words.
      encoder: the encoder that training starts from.
      protocol: everything else that the training depends on; written to `CLAIM`.
    """
    identity = {
        "encoder": encoder.digest,
        "model": dict(encoder.settings),
        "normalization": encoder.normalization[:2],
    }
    text = json.dumps({**identity, **protocol}, indent=2, sort_keys=True) + "\n"
    file = folder / CLAIM

    def claim_folder() -> None:
        with files.write_errors(folder):
            if folder.exists() and not (file.exists() and file.read_text() == text):
                numbers = itertools.count(1)
                asides = (folder.with_name(f"{folder.name}.{n}") for n in numbers)
                aside = next(path for path in asides if not path.exists())
                folder.rename(aside)
                metrics.log(f"moved {what} of another encoder or other settings to {aside}")
            folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                files.write_text(file, text)

    parallel.from_primary(claim_folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """The training of a classifier, apart from its step.

    Attributes:
      job: name of the job, also of its settings.
      label: what the first line begins with.
      folder: holds checkpoints and metrics.
      config: the whole configuration, as returned by `crop_and_flip`.
      source: the labeled images.
      num_steps: total steps.
      mesh: the devices.
      learning_rate: learning rate per step, for the metrics.
      advice: what to try against non-finite values.
      evaluate_after: as in `gsjax.train.fit.Run`.
      evaluate: as in `gsjax.train.fit.Run`.
      needs_measurement: whether a signal cut short the measurement after a step.
    """

    job: str
    label: str
    folder: epath.Path
    config: ml_collections.ConfigDict
    source: Source
    num_steps: int
    mesh: Mesh
    learning_rate: optax.Schedule
    advice: str
    evaluate_after: Callable[[int], bool] = lambda done: False
    evaluate: Callable[[TrainState, Callable[[], None]], Mapping[str, float]] | None = None
    needs_measurement: Callable[[int], bool] = lambda done: False

    def run(
        self,
        create: Any,
        initial: tuple,
        program: jax.stages.Wrapped,
        *arguments: Any,
    ) -> TrainState:
        """Trains to the end, from the newest checkpoint in the folder if there is one.

        Args:
          create: compiled (*initial) -> state.
          initial: its arguments.
          program: compiled (state, batch, *arguments) -> (state, metrics); the batch holds `global`
            and `label`.
          *arguments: further arguments of the step.
        """
        config, num_steps, batch_size = self.config, self.num_steps, self.config.batch_size
        with contextlib.ExitStack() as stack:
            stack.enter_context(memory.explain_out_of_memory(self._memory_advice))
            saved = checkpoints.Checkpoints(self.folder, keep=2, keep_every=0)
            state = saved.restore("latest", create.eval_shape(*initial))
            if state is None:
                state = create(*initial)
            first = int(state.step)
            metrics.log(
                f"{self.label:8} {self.source.num_examples} images, {num_steps} steps of "
                f"{batch_size}, from step {first}"
            )
            writer = stack.enter_context(
                contextlib.closing(writers.create_writer(self.folder, first))
            )
            if self.evaluate and self.needs_measurement(first):
                writer.write_scalars(first, self.evaluate(state, lambda: None))
                writer.flush()
            if first == num_steps:
                return state
            batches = input_pipeline.train_batches(
                self.source, config, first, num_steps, jax.process_index(), jax.process_count(), 1
            )
            stack.enter_context(contextlib.closing(batches))
            run = Run(
                label=self.job,
                folder=self.folder,
                batch_size=batch_size,
                learning_rate=self.learning_rate,
                log_every=config.log.every_steps,
                save_every=config.checkpoint.every_steps,
                writer=writer,
                holds=saved.holds,
                save=lambda done, state: saved.save(done, state, writer),
                advice=self.advice,
                describe_memory=lambda _: self._memory_advice(),
                evaluate_after=self.evaluate_after,
                evaluate=self.evaluate,
            )
            columns = ("global", "label")
            return fit(state, program, batches, num_steps, run, self.mesh, columns, *arguments)

    def _memory_advice(self) -> str:
        setting = f"{self.job}.batch_size"
        return (
            f"a step at {setting}={self.config.batch_size} does not fit on a device; use more "
            f"devices than {jax.device_count()}, or a smaller {setting}, which changes the recipe"
        )

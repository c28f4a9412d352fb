"""Linear evaluation: one layer trained on the frozen encoder, on random crops (thesis 5.1)."""

import contextlib
import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gsjax import augment
from gsjax.config import per_view
from gsjax.data import input_pipeline, order, sources, transforms
from gsjax.data.source import Source
from gsjax.errors import UserError
from gsjax.evaluate import evaluation, features, store
from gsjax.evaluate.encoder import Encoder
from gsjax.evaluate.evaluation import Result
from gsjax.methods import METHODS
from gsjax.runtime import checkpoints, files, lock, memory, metrics, parallel, writers
from gsjax.runtime.parallel import AXIS
from gsjax.train.fit import Run, fit
from gsjax.train.state import TrainState, create_state, update
from gsjax.train.step import seed_key

_WEIGHT_STD = 0.01


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """The job `linear`: trains on the labeled split, measures the last epoch on the test split.

    The head is written to `workdir/linear/head.npz`: `kernel` [F, C] and `bias` [C]. Training
    resumes from the newest checkpoint of the same encoder and settings, if there is one.
    """
    with (
        evaluation.open_evaluation(config, workdir, "linear") as job,
        lock.held(job.workdir, job.folder.name),
    ):
        evaluator = Linear(config, job.folder)
        for result in evaluator(job.encoder):
            job.record(result, at=evaluator.num_steps)


class Linear:
    """Trains a head on the labeled split and measures it on the test split; an `Evaluator`.

    Attributes:
      num_steps: total steps of training.
    """

    def __init__(self, config: ml_collections.ConfigDict, folder: epath.Path) -> None:
        """Opens the splits; `folder` holds the head and its checkpoints."""
        self._config, self._folder = config, folder
        self._train, self._test = sources.open_labeled(config.data)
        features.check_hosts(self._train)
        batch_size = config.linear.batch_size
        self._mesh = parallel.create_mesh(batch_size, setting="linear.batch_size")
        epoch_steps = order.steps_per_epoch(self._train, batch_size, "linear.batch_size")
        self.num_steps = config.linear.num_epochs * epoch_steps
        self._transform = transforms.of_config(config)

    def __call__(self, encoder: Encoder) -> list[Result]:
        """Measures `linear/top1` and `linear/top5`."""
        settings = self._config.linear
        default = METHODS[self._config.method].linear_learning_rate
        protocol = {
            **settings.to_dict(),
            "learning_rate": settings.learning_rate or default,
            "seed": self._config.seed,
            "train": self._train.name,
            "test": self._test.name,
            "version": self._train.version,
            "test_transform": repr(self._transform),
        }
        hosts = jax.process_count() if self._train.shards else None
        _claim(self._folder, encoder, protocol, hosts)
        head = self._fit(encoder, protocol["learning_rate"])
        if parallel.is_primary():
            with files.write_errors(self._folder):
                store.write_npz(self._folder / "head.npz", head)
        rows = encoder.features(self._test, self._transform)
        left_out = rows.left_out
        rows = rows.decoded()
        ranked = predict(rows.feature, head["kernel"], head["bias"])
        hits = ranked == rows.label[:, None]
        scores = {
            "linear/top1": 100 * float(hits[:, 0].mean()),
            "linear/top5": 100 * float(hits.any(axis=1).mean()),
        }
        counts = {
            "num_train": self._train.num_examples,
            "num_test": len(rows.label),
            "num_left_out": left_out,
        }
        return [Result(self._test.dataset, scores, protocol | counts)]

    def _fit(self, encoder: Encoder, learning_rate: float) -> dict[str, np.ndarray]:
        """Trains the head; returns `kernel` and `bias`."""
        config, num_steps = self._config, self.num_steps
        batch_size = config.linear.batch_size
        schedule = optax.cosine_decay_schedule(learning_rate * batch_size / 256, num_steps)
        optimizer = optax.sgd(schedule, momentum=config.linear.momentum, nesterov=True)
        size = config.data.image_size
        images = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
        num_features = jax.eval_shape(encoder.encode_fn, encoder.variables, images).shape[1]
        init_key, key = jax.random.split(jax.random.fold_in(seed_key(config.seed), 1))
        create = _create_head_fn(
            (num_features, _num_classes(self._train)),
            encoder.normalization[2],
            optimizer,
            self._mesh,
        )
        data = _train_config(config)
        with contextlib.ExitStack() as stack:
            stack.enter_context(memory.explain_out_of_memory(lambda: _memory_advice(batch_size)))
            saved = checkpoints.Checkpoints(self._folder, keep=2, keep_every=0)
            state = saved.restore("latest", create.eval_shape(init_key))
            if state is None:
                state = create(init_key)
            first = int(state.step)
            metrics.log(
                f"head     {self._train.num_examples} images, {num_steps} steps of {batch_size}, "
                f"from step {first}"
            )
            writer = stack.enter_context(
                contextlib.closing(writers.create_writer(self._folder, first))
            )
            if first == num_steps:
                return jax.device_get(state.params)
            batches = input_pipeline.train_batches(
                self._train, data, first, num_steps, jax.process_index(), jax.process_count(), 1
            )
            stack.enter_context(contextlib.closing(batches))
            run = Run(
                label="linear",
                folder=self._folder,
                batch_size=batch_size,
                learning_rate=schedule,
                log_every=config.log.every_steps,
                save_every=config.checkpoint.every_steps,
                writer=writer,
                holds=saved.holds,
                save=lambda done, state: saved.save(done, state, writer),
                advice="Use a smaller linear.learning_rate; this starts a new head",
                describe_memory=lambda _: _memory_advice(batch_size),
            )
            program = create_train_step(encoder, data.augment, optimizer, self._mesh)
            columns = ("global", "label")
            state = fit(
                state, program, batches, num_steps, run, self._mesh, columns,
                key, encoder.variables,
            )  # fmt: skip
        return jax.device_get(state.params)


def predict(features: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Returns the five classes with the largest logits (or all if fewer), best first: [N, 5]."""
    logits = jnp.matmul(features, kernel, precision=lax.Precision.HIGHEST) + bias[None]
    return np.asarray(lax.top_k(logits, min(5, len(bias)))[1])


def _claim(folder: epath.Path, encoder: Encoder, protocol: dict, hosts: int | None) -> None:
    """Claims a folder for this encoder and these settings; moves any other head aside."""
    identity = {
        "encoder": encoder.digest,
        "model": dict(encoder.settings),
        "normalization": encoder.normalization[:2],
        "hosts": hosts,
    }
    text = json.dumps({**identity, **protocol}, indent=2, sort_keys=True) + "\n"
    file = folder / "config.json"

    def claim() -> None:
        with files.write_errors(folder):
            if folder.exists() and not (file.exists() and file.read_text() == text):
                numbers = itertools.count(1)
                asides = (folder.with_name(f"{folder.name}.{n}") for n in numbers)
                aside = next(path for path in asides if not path.exists())
                folder.rename(aside)
                metrics.log(f"moved the head of another encoder or other settings to {aside}")
            folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                files.write_text(file, text)

    parallel.from_primary(claim)


def _create_head_fn(
    shape: tuple[int, int], dtype: Any, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Any:
    """Compiles (key) -> state of a head [F, C], replicated over the devices."""

    def create(key: jax.Array) -> TrainState:
        params = {
            "kernel": _WEIGHT_STD * jax.random.normal(key, shape, dtype),
            "bias": jnp.zeros(shape[1], dtype),
        }
        return create_state(params, {}, optimizer)

    return jax.jit(create, out_shardings=parallel.replicated(mesh))


def _memory_advice(batch_size: int) -> str:
    return (
        f"a step at linear.batch_size={batch_size} does not fit on a device; use more devices than "
        f"{jax.device_count()}, or a smaller linear.batch_size, which changes the recipe"
    )


def create_train_step(
    encoder: Encoder,
    settings: ml_collections.ConfigDict,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """Compiles (state, batch, key, variables) -> (state, metrics) over the devices.

    The batch holds `global`, Crops of one view, and `label` int32 [B]; the only augmentation
    on the device is the horizontal flip. The encoder, with these variables, is in inference mode.
    """
    mean, std, dtype = encoder.normalization

    def train_step(state: TrainState, batch: dict, key: jax.Array, variables):
        local = len(batch["label"])
        position = lax.axis_index(AXIS) * local + jnp.arange(local)
        step_key = jax.random.fold_in(key, state.step)
        keys = jax.vmap(lambda p: jax.random.fold_in(step_key, p))(position)
        images = augment.augment(keys, batch["global"].images[:, 0], settings, mean, std, dtype)
        outputs: Any = encoder.module.apply(variables, images, train=False)
        features = outputs.pooled

        def loss_fn(params):
            product = jnp.matmul(features, params["kernel"], precision=lax.Precision.HIGHEST)
            logits = product + params["bias"][None]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            hits = jnp.argmax(logits, axis=1) == batch["label"]
            return jnp.mean(losses), 100 * jnp.mean(hits)

        values_and_grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        (loss, top1), grads = lax.pmean(values_and_grads, AXIS)
        state, metrics = update(state, loss, grads, state.extra, optimizer)
        return state, metrics | {"top1": top1}

    return parallel.data_parallel(
        train_step,
        mesh,
        in_specs=(P(), P(AXIS), P(), P()),
        out_specs=(P(), P()),
        donate=(0,),
    )


def _train_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config for the input pipeline and the augmentation: crop and flip only."""
    data = config.copy_and_resolve_references()
    with data.unlocked():
        data.batch_size = config.linear.batch_size
        (data.augment,) = per_view.augmentations(data.augment, 1)
        data.augment.update(
            crop="torchvision",
            interpolation="bilinear",
            min_scale=config.linear.min_scale,
            max_scale=1.0,
            flip=config.linear.flip,
            jitter=0.0,
            gray=0.0,
            blur=0.0,
            solarize=0.0,
        )
    return data


def _num_classes(source: Source) -> int:
    if source.class_names:
        return len(source.class_names)
    if source.labels is None:
        raise UserError(f"{source.name} does not name its classes and is too large to count them")
    return int(source.labels.max()) + 1

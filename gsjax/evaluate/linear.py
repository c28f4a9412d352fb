"""Linear evaluation: one layer trained on the frozen encoder, on random crops (thesis 5.1)."""

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
from gsjax.data import order, sources, transforms
from gsjax.evaluate import classifier, evaluation, features, store
from gsjax.evaluate.encoder import Encoder
from gsjax.evaluate.evaluation import Result
from gsjax.methods import METHODS
from gsjax.runtime import files, lock, parallel
from gsjax.runtime.parallel import AXIS
from gsjax.train.state import TrainState, create_state, update
from gsjax.train.step import seed_key


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
        classifier.claim(self._folder, "the head", encoder, {"hosts": hosts, **protocol})
        head = self._fit(encoder, protocol["learning_rate"])
        if parallel.is_primary():
            with files.write_errors(self._folder):
                store.write_npz(self._folder / "head.npz", head)
        scores, counts = classifier.measure("linear", encoder, head, self._test, self._transform)
        counts = {"num_train": self._train.num_examples, **counts}
        return [Result(self._test.dataset, scores, protocol | counts)]

    def _fit(self, encoder: Encoder, learning_rate: float) -> dict[str, np.ndarray]:
        """Trains the head; returns `kernel` and `bias`."""
        config, num_steps = self._config, self.num_steps
        batch_size = config.linear.batch_size
        schedule = optax.cosine_decay_schedule(learning_rate * batch_size / 256, num_steps)
        optimizer = optax.sgd(schedule, momentum=config.linear.momentum, nesterov=True)
        init_key, key = jax.random.split(jax.random.fold_in(seed_key(config.seed), 1))
        size = classifier.num_features(encoder, config.data.image_size)
        create = _create_state_fn(
            (size, classifier.num_classes(self._train)),
            encoder.normalization[2],
            optimizer,
            self._mesh,
        )
        data = _train_config(config)
        training = classifier.Training(
            job="linear",
            label="head",
            folder=self._folder,
            config=data,
            source=self._train,
            num_steps=num_steps,
            mesh=self._mesh,
            learning_rate=schedule,
            advice="Use a smaller linear.learning_rate; this starts a new head",
        )
        program = create_train_step(encoder, data.augment, optimizer, self._mesh)
        state = training.run(create, (init_key,), program, key, encoder.variables)
        return jax.device_get(state.params)


def _create_state_fn(
    shape: tuple[int, int], dtype: Any, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Any:
    """Compiles (key) -> state of a head [F, C], replicated over the devices."""

    def create(key: jax.Array) -> TrainState:
        return create_state(classifier.create_head(key, shape, dtype), {}, optimizer)

    return jax.jit(create, out_shardings=parallel.replicated(mesh))


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
            logits = classifier.logits(features, params)
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
    settings = config.linear
    return classifier.crop_and_flip(config, settings.batch_size, settings.min_scale, settings.flip)

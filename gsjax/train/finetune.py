"""Fine-tuning: the whole network trained on labeled images, all of them or a part.

The presets are published protocols of learning from 1 % and 10 % of ImageNet's labels:

- `simclr` (arXiv:2002.05709, B.5): SGD with Nesterov momentum 0.9, batch 4096, rate 0.05 per 256
  images for the encoder and the head, no warmup, no weight decay, random crops and flips only; 60
  epochs at 1 %, 30 at 10 % and, as in SimCLR v2 (arXiv:2006.10029), at 100 %. The cosine schedule
  is that of google-research/simclr, model_util.py. Differences: the paper resizes test images to
  256 x 256 pixels instead of their short side, and the code can start with a head of
  zeros, while ours is normal with std 0.01, its default.
- `barlow` (facebookresearch/barlowtwins, evaluate.py, and its README's command for 1 %): SGD with
  momentum 0.9, batch 256, rate 0.005 for the encoder and 0.5 for the head, no weight decay, 20
  epochs, cosine schedule, head normal with std 0.01. Differences: the schedule moves at each step
  instead of each epoch, the last epoch is reported instead of the best, and 10 % and 100 %, for
  which the repository has no command, have the same rates.

With BatchNorm, batch statistics are those of the whole batch and the running ones are updated.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax
from etils import epath

from gsjax.data import order, sources, subset, transforms
from gsjax.evaluate import classifier, evaluation, features, store
from gsjax.evaluate.encoder import Encoder
from gsjax.evaluate.evaluation import Result
from gsjax.runtime import lock, metrics, parallel
from gsjax.train.finetune_step import (
    create_optimizer,
    create_state_fn,
    create_train_step,
    encoder_variables,
)
from gsjax.train.layer_rates import layer_rates
from gsjax.train.state import TrainState
from gsjax.train.step import seed_key

_FEW = 0.05  # fraction of the labels up to which the preset for 1 % applies


class Recipe(NamedTuple):
    """A protocol, or what the settings make of it.

    Attributes:
      num_epochs: epochs over the images that are used.
      batch_size: images per step over all devices and hosts.
      learning_rate: of the encoder, per 256 images.
      head_learning_rate: of the head, per 256 images.
      nesterov: whether the momentum is Nesterov's.
    """

    num_epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    nesterov: bool


def create_recipe(settings: ml_collections.ConfigDict, fraction: float) -> Recipe:
    """Reads the settings `finetune` for a fraction of the labels."""
    batch_size = settings.batch_size
    if settings.preset == "simclr":
        rate = settings.learning_rate or 0.05
        recipe = Recipe(60 if fraction < _FEW else 30, batch_size or 4096, rate, rate, True)
    else:
        rate = settings.learning_rate or 0.005
        recipe = Recipe(20, batch_size or 256, rate, 0.5, False)
    if settings.num_epochs:
        recipe = recipe._replace(num_epochs=settings.num_epochs)
    if settings.head_learning_rate:
        recipe = recipe._replace(head_learning_rate=settings.head_learning_rate)
    return recipe


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """The job `finetune`: trains on the labeled split, measures the last epoch on the test split.

    The network stays in `workdir/finetune/checkpoints`, for the job `export`. Training resumes from
    the newest checkpoint of the same encoder and settings, if there is one.
    """
    with (
        evaluation.open_evaluation(config, workdir, "finetune") as job,
        lock.held(job.workdir, job.folder.name),
    ):
        evaluator = Finetune(config, job.folder)
        for result in evaluator(job.encoder):
            job.record(result, at=evaluator.num_steps)


class Finetune:
    """Trains a copy of the encoder with a head, and measures it; an `Evaluator`.

    Attributes:
      num_steps: total steps of training.
    """

    def __init__(self, config: ml_collections.ConfigDict, folder: epath.Path) -> None:
        """Opens the splits; `folder` holds the checkpoints."""
        self._config, self._folder, settings = config, folder, config.finetune
        self._whole, self._test = sources.open_labeled(config.data)
        features.check_hosts(self._whole)
        self._train = subset.choose(
            self._whole, settings.fraction, settings.label_file, config.seed
        )
        share = self._train.num_examples / self._whole.num_examples
        self._recipe = create_recipe(settings, share)
        batch_size, setting = self._recipe.batch_size, "finetune.batch_size"
        self._epoch_steps = order.steps_per_epoch(self._train, batch_size, setting)
        self._mesh = parallel.create_mesh(batch_size, setting=setting)
        self.num_steps = self._recipe.num_epochs * self._epoch_steps
        self._transform = transforms.of_config(config)

    def __call__(self, encoder: Encoder) -> list[Result]:
        """Measures `finetune/top1` and `finetune/top5`."""
        protocol, train = self._protocol(), self._train
        facts = {
            "hosts": jax.process_count() if train.shards else None,
            "images": self._images(),
            "num_steps": self.num_steps,
            "num_train": train.num_examples,
            "num_classes": classifier.num_classes(self._whole),
            "class_names": train.class_names,
        }
        classifier.claim(self._folder, "the network", encoder, {**facts, **protocol})
        # Representations of what is trained here are needed once only.
        encoder = dataclasses.replace(encoder, folder=None)
        state = self._fit(encoder)
        scores, counts = self._measure(encoder, state)
        counts |= {"num_train": train.num_examples}
        rates = ("learning_rate", "head_learning_rate")
        return [Result(self._test.dataset, scores, protocol | counts, tuned=rates)]

    def _protocol(self) -> dict[str, Any]:
        config, settings = self._config, self._config.finetune
        unread = ("preset", "every_epochs")
        return {
            **{name: value for name, value in settings.to_dict().items() if name not in unread},
            **self._recipe._asdict(),
            "label_file": self._label_file(),
            "seed": config.seed,
            "train": self._whole.name,
            "test": self._test.name,
            "version": self._whole.version,
            "test_transform": repr(self._transform),
        }

    def _label_file(self) -> str:
        """Returns name and content of `finetune.label_file`, in short."""
        path = self._config.finetune.label_file
        return f"{epath.Path(path).name} ({self._images()[:12]})" if path else ""

    def _images(self) -> str:
        """Identifies the images that are used."""
        numbers = self._train.numbers
        return "all" if numbers is None else store.digest(np.array(numbers))

    def _fit(self, encoder: Encoder) -> TrainState:
        """Trains the network; returns the last state."""
        config, settings, recipe = self._config, self._config.finetune, self._recipe
        scale = recipe.batch_size / 256
        schedule = optax.cosine_decay_schedule(1.0, self.num_steps)
        params = encoder.variables["params"]
        rate = scale * recipe.learning_rate
        rates = {
            "encoder": layer_rates(encoder.module, params, rate, settings.layer_decay),
            "head": dict.fromkeys(("kernel", "bias"), scale * recipe.head_learning_rate),
        }
        optimizer = create_optimizer(schedule, rates, settings.weight_decay, recipe.nesterov)
        init_key, key = jax.random.split(jax.random.fold_in(seed_key(config.seed), 1))
        size = classifier.num_features(encoder, config.data.image_size)
        shape = (size, classifier.num_classes(self._whole))
        create = create_state_fn(shape, encoder.normalization[2], optimizer, self._mesh)
        data = classifier.crop_and_flip(
            config, recipe.batch_size, settings.min_scale, settings.flip
        )
        training = classifier.Training(
            job="finetune",
            label="finetune",
            folder=self._folder,
            config=data,
            source=self._train,
            num_steps=self.num_steps,
            mesh=self._mesh,
            learning_rate=lambda step: rate * schedule(step),
            advice="Use a smaller finetune.learning_rate; this starts anew",
            evaluate_after=self._measures_after,
            evaluate=functools.partial(self._monitor, encoder),
            needs_measurement=self._needs_measurement,
        )
        program = create_train_step(
            encoder, data.augment, optimizer, self._mesh, settings.label_smoothing
        )
        return training.run(create, (init_key, encoder.variables), program, key)

    def _measure(
        self, encoder: Encoder, state: TrainState, check: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, float], dict[str, int]]:
        variables = encoder_variables(state.params, state.extra)
        trained = encoder.with_variables(variables, check)
        head = jax.device_get(state.params["head"])
        return classifier.measure("finetune", trained, head, self._test, self._transform)

    def _monitor(
        self, encoder: Encoder, state: TrainState, check: Callable[[], None]
    ) -> Mapping[str, float]:
        scores, _ = self._measure(encoder, state, check)
        return scores

    def _measures_after(self, done: int) -> bool:
        """Whether to measure after `done` steps, before the end."""
        every = math.ceil(self._config.finetune.every_epochs * self._epoch_steps)
        return bool(every) and done % every == 0 and 0 < done < self.num_steps

    def _needs_measurement(self, done: int) -> bool:
        """Whether a signal cut short the measurement of the restored step."""

        def has_measured() -> bool:
            records = metrics.read_records(self._folder)
            return any(r["step"] == done and "finetune/top1" in r for r in records)

        return self._measures_after(done) and not parallel.from_primary(has_measured)

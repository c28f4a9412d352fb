"""Linear evaluation: one layer trained on the frozen encoder, on random crops (thesis 5.1)."""

import contextlib
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from gsjax import augment
from gsjax.config.defaults import LINEAR_LEARNING_RATES
from gsjax.data import input_pipeline, order, sources, transforms
from gsjax.errors import UserError
from gsjax.evaluate import evaluation, features, store
from gsjax.runtime import checkpoints, files, interrupts, lock, memory, metrics, parallel
from gsjax.runtime.parallel import AXIS
from gsjax.train import loop
from gsjax.train.step import TrainState, first_state, marked_finite, seed_key, update

_WEIGHT_STD = 0.01


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """The job `linear`: trains on the labelled split, measures the last epoch on the test split.

    The head is written to `workdir/linear/head.npz`: `kernel` [F, C] and `bias` [C]. It is trained
    on from its newest checkpoint if there is one of the same encoder and settings.
    """
    settings = config.linear
    with (
        evaluation.open_evaluation(config, workdir, "linear") as job,
        lock.held(job.workdir, job.folder.name),
    ):
        train, test = sources.open_labelled(config.data)
        features.check_hosts(train)
        batch_size = settings.batch_size
        job.mesh = parallel.create_mesh(batch_size, setting="linear.batch_size")
        epoch_steps = order.steps_per_epoch(train, batch_size, "linear.batch_size")
        protocol = {
            **settings.to_dict(),
            "learning_rate": settings.learning_rate or LINEAR_LEARNING_RATES[config.method],
            "seed": config.seed,
            "train": train.name,
            "test": test.name,
            "version": train.version,
            "test_transform": repr(transforms.central(config.data.image_size)),
        }
        hosts = jax.process_count() if train.shards else None
        _claim(job, protocol, hosts)
        head = _train(job, train, protocol, settings.num_epochs * epoch_steps)
        if parallel.is_primary():
            with files.told(job.folder):
                store.write_npz(job.folder / "head.npz", head)
        rows = job.features(test, transforms.central(config.data.image_size))
        left_out = rows.left_out
        rows = rows.decoded()
        ranked = predict(rows.feature, head["kernel"], head["bias"])
        hits = ranked == rows.label[:, None]
        job.record(
            test.dataset,
            {
                "linear/top1": 100 * float(hits[:, 0].mean()),
                "linear/top5": 100 * float(hits.any(axis=1).mean()),
            },
            protocol={
                **protocol,
                "num_train": train.num_examples,
                "num_test": len(rows.label),
                "num_left_out": left_out,
            },
            at=settings.num_epochs * epoch_steps,
        )


def predict(features: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The five classes with the largest logits (fewer if there are fewer), best first: [N, 5]."""
    logits = jnp.matmul(features, kernel, precision=lax.Precision.HIGHEST) + bias[None]
    return np.asarray(lax.top_k(logits, min(5, len(bias)))[1])


def _claim(job: evaluation.Evaluation, protocol: dict, hosts: int | None) -> None:
    """Makes the job's folder that of this encoder and these settings; moves another head aside."""
    identity = {"encoder": job.digest, "normalisation": job.normalisation[:2], "hosts": hosts}
    text = json.dumps({**identity, **protocol}, indent=2, sort_keys=True) + "\n"
    file = job.folder / "config.json"

    def claim() -> None:
        with files.told(job.folder):
            if job.folder.exists() and not (file.exists() and file.read_text() == text):
                numbers = itertools.count(1)
                asides = (job.folder.with_name(f"{job.folder.name}.{n}") for n in numbers)
                aside = next(path for path in asides if not path.exists())
                job.folder.rename(aside)
                metrics.say(f"the head of another encoder or settings is put aside in {aside}")
            job.folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                files.write_text(file, text)

    parallel.from_primary(claim)


def _train(
    job: evaluation.Evaluation, train: sources.Source, protocol: dict, num_steps: int
) -> dict[str, np.ndarray]:
    config = job.config
    batch_size = config.linear.batch_size
    schedule = optax.cosine_decay_schedule(protocol["learning_rate"] * batch_size / 256, num_steps)
    optimizer = optax.sgd(schedule, momentum=config.linear.momentum, nesterov=True)
    size = config.data.image_size
    images = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
    num_features = jax.eval_shape(job.encode_fn, job.variables, images).shape[1]
    init_key, key = jax.random.split(jax.random.fold_in(seed_key(config.seed), 1))
    shape = (num_features, _num_classes(train))

    @functools.partial(jax.jit, out_shardings=parallel.replicated(job.mesh))
    def create(key):
        dtype = job.normalisation[2]
        params = {
            "kernel": _WEIGHT_STD * jax.random.normal(key, shape, dtype),
            "bias": jnp.zeros(shape[1], dtype),
        }
        return first_state(params, {}, optimizer)

    data = _train_config(config)
    program = create_train_step(job, data.augment, optimizer)
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory.told_out_of_memory(lambda: _smaller(batch_size)))
        saved = checkpoints.Checkpoints(job.folder, keep=2, keep_every=0)
        state = saved.restore("latest", create.eval_shape(init_key))
        if state is None:
            state = create(init_key)
        first = done = int(state.step)
        metrics.say(
            f"head     {num_steps} steps of {batch_size} of {train.num_examples} images, "
            f"from step {first}"
        )
        writer = stack.enter_context(contextlib.closing(job.writer(first)))
        batches = input_pipeline.train_batches(
            train, data, first, num_steps, jax.process_index(), jax.process_count(), num_views=1
        )
        stack.enter_context(contextlib.closing(batches))
        asked = interrupts.Request()
        watch = loop.Watch(asked, job.mesh)
        stream = parallel.prefetch(watch.feed(batches, "views", "label"), job.mesh)
        progress = metrics.Progress("linear", num_steps, first)
        stack.enter_context(contextlib.closing(progress))
        clock = loop.Clock(batch_size, first)
        if first < num_steps:
            batch = next(stream)
            stream = itertools.chain([batch], stream)
            train_step = program.lower(state, job.variables, batch, key).compile()
        stopping = 0
        stack.enter_context(interrupts.deferred(asked))
        try:
            while done < num_steps and not stopping:
                with clock.waiting():
                    batch = next(stream)
                state, values = train_step(state, job.variables, batch, key)
                done += 1
                clock.after_step(done, values)
                stopping = watch.after_step(done, values)
                last = done == num_steps or stopping
                if done % config.log.every_steps == 0 or last:
                    scalars = loop.log(writer, clock, done, values, float(schedule(done - 1)))
                    progress.describe(f"loss {scalars['train/loss']:.3f}")
                progress.update(done)
                if last or done % config.checkpoint.every_steps == 0:
                    watch.settle()
                    saved.save(done, state, writer)
                    clock.restart(done)
        except loop.NotFinite as error:
            good = int(state.step)
            if good and not saved.holds(good):
                saved.save(good, marked_finite(state), writer)
            advice = "Take a smaller linear.learning_rate, which begins a new head"
            raise error.told(job.folder, advice) from error
        stopping = watch.last_signal()
    if stopping:
        loop.leave(done, stopping)
    return jax.device_get(state.params)


def _smaller(batch_size: int) -> str:
    return (
        f"the step of linear.batch_size={batch_size} needs more than a device has; what keeps the "
        f"recipe: more devices than {jax.device_count()}; a smaller linear.batch_size changes it"
    )


def create_train_step(
    job: evaluation.Evaluation,
    settings: ml_collections.ConfigDict,
    optimizer: optax.GradientTransformation,
) -> jax.stages.Wrapped:
    """Compiles (state, variables, batch, key) -> (state, metrics) over the devices.

    The batch holds `views` uint8 [B, 1, S, S, 3] and `label` int32 [B]; of the views only the
    horizontal flip is drawn on the device. The encoder is in inference mode.
    """
    mean, std, dtype = job.normalisation

    def train_step(state: TrainState, variables, batch: dict, key: jax.Array):
        local = len(batch["label"])
        position = lax.axis_index(AXIS) * local + jnp.arange(local)
        step_key = jax.random.fold_in(key, state.step)
        keys = jax.vmap(lambda p: jax.random.fold_in(step_key, p))(position)
        images = augment.augment(keys, batch["views"][:, 0], settings, mean, std, dtype)
        features = jnp.asarray(job.encoder.apply(variables, images, train=False))

        def loss_fn(params):
            product = jnp.matmul(features, params["kernel"], precision=lax.Precision.HIGHEST)
            logits = product + params["bias"][None]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            hits = jnp.argmax(logits, axis=1) == batch["label"]
            return jnp.mean(losses), 100 * jnp.mean(hits)

        values_and_grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        (loss, top1), grads = lax.pmean(values_and_grads, AXIS)
        state, metrics = update(state, loss, grads, state.batch_stats, optimizer)
        return state, metrics | {"top1": top1}

    return parallel.data_parallel(
        train_step,
        job.mesh,
        in_specs=(P(), P(), P(AXIS), P()),
        out_specs=(P(), P()),
        donate=(0,),
    )


def _train_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """What the input pipeline and the augmentation read: crop and flip alone."""
    data = config.copy_and_resolve_references()
    with data.unlocked():
        data.batch_size = config.linear.batch_size
        data.augment.update(
            crop="torchvision",
            min_scale=config.linear.min_scale,
            max_scale=1.0,
            flip=config.linear.flip,
            jitter=0.0,
            grey=0.0,
            blur=0.0,
        )
    return data


def _num_classes(source: sources.Source) -> int:
    if source.class_names:
        return len(source.class_names)
    if source.labels is None:
        raise UserError(f"{source.name} is too large to count its classes and does not name them")
    return int(source.labels.max()) + 1

"""The compiled data-parallel pre-training step."""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gsjax import augment, similarity
from gsjax.config import per_view, settings
from gsjax.crops import Crops, limits_overlap
from gsjax.methods.base import Method, Progress
from gsjax.models.norm import at_least_float32
from gsjax.runtime import parallel
from gsjax.runtime.parallel import AXIS
from gsjax.train.state import TrainState, create_state, update

NETWORK = np.uint32(2**31)
"""Folded into the step's key for the keys of networks; image positions, folded in too, are smaller.
"""


def keys(config: ml_collections.ConfigDict) -> tuple[jax.Array, jax.Array]:
    """Returns the keys for the initial weights and for the steps."""
    init_key, step_key = jax.random.split(seed_key(config.seed))
    return init_key, step_key


def seed_key(seed: int) -> jax.Array:
    """Returns the key for a seed.

    Always Threefry, whatever JAX_DEFAULT_PRNG_IMPL says: other draws depend on the devices.
    """
    return jax.random.key(seed, impl="threefry2x32")


def create_state_fn(
    config: ml_collections.ConfigDict,
    method: Method,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Any:
    """Compiles (key for the initial weights) -> state, replicated over the devices of `mesh`.

    A second argument replaces the encoder's initial variables.
    """

    def create(key: jax.Array, encoder: Any = None) -> TrainState:
        given = () if encoder is None else (encoder,)
        return create_state(*method.init(key, config.data.image_size, *given), optimizer)

    return jax.jit(create, out_shardings=parallel.replicated(mesh))


def normalization(config: ml_collections.ConfigDict) -> tuple[tuple, tuple]:
    """Returns the per-channel means and standard deviations, in [0, 1]."""
    return (
        settings.triple("data.mean", config.data.mean),
        settings.triple("data.std", config.data.std),
    )


def pixels(config: ml_collections.ConfigDict) -> tuple[tuple, tuple, Any]:
    """Returns mean, standard deviation and dtype of normalized pixels.

    The dtype is float32, or float64 if the encoder's is.
    """
    return *normalization(config), at_least_float32(config.encoder.dtype)


def augment_views(
    crops: Mapping[str, Crops], key: jax.Array, position: jax.Array, config: Any
) -> dict[str, jax.Array]:
    """Augments all views of a batch, each with its own key.

    Args:
      crops: uint8 images [B, V, S, S, 3] per size.
      key: the step's key.
      position: [B] positions in the global batch, so that an image's augmentation does not
        depend on the number of devices.
      config: the whole configuration.

    Returns:
      Normalized views [B, V, S, S, 3] per size.
    """
    mean, std, dtype = pixels(config)
    num_views = sum(part.images.shape[1] for part in crops.values())
    split_keys = jax.vmap(lambda p: jax.random.split(jax.random.fold_in(key, p), num_views))
    keys = split_keys(position)
    of_views = per_view.augmentations(config.augment, num_views)
    views, first = {}, 0
    for name, part in crops.items():
        last, augmented = first + part.images.shape[1], []
        # Views with the same settings are computed together.
        for own, places in itertools.groupby(range(first, last), of_views.__getitem__):
            run = list(places)
            function = functools.partial(
                augment.augment, settings=own, mean=mean, std=std, dtype=dtype
            )
            images = part.images[:, run[0] - first : run[-1] + 1 - first]
            of_run = keys[:, run[0] : run[-1] + 1]
            augmented.append(jax.vmap(function, in_axes=1, out_axes=1)(of_run, images))
        views[name] = jnp.concatenate(augmented, axis=1)
        first = last
    return views


def create_train_step(
    config: ml_collections.ConfigDict,
    method: Method,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    num_steps: int,
    epoch_steps: int,
) -> jax.stages.Wrapped:
    """Compiles (state, batch, key) -> (state, metrics) over the devices of `mesh`.

    `metrics["finite"]` is `state.finite`, which cannot be read once the next step takes the state.
    The batch holds `gsjax.crops.Crops` per size, split over the devices; state, key and
    metrics are replicated, and the state is donated. Each device differentiates the mean loss of
    its own anchors; averaging the gradients gives that of the mean over the global batch.
    """

    def train_step(state: TrainState, batch: dict[str, Crops], key: jax.Array):
        local = len(batch["global"].images)
        position = lax.axis_index(AXIS) * local + jnp.arange(local)
        step_key = jax.random.fold_in(key, state.step)
        views = augment_views(batch, step_key, position, config)
        boxes = {name: crops.boxes for name, crops in batch.items()}
        network_key = jax.random.fold_in(step_key, NETWORK)
        keys = jax.vmap(lambda p: jax.random.fold_in(network_key, p))(position)
        progress = Progress(state.step, num_steps, epoch_steps)

        def loss_fn(params):
            return method.loss(params, state.extra, views, boxes, keys, progress)

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (extra, metrics)), grads = gradient(state.params)
        loss, grads = lax.pmean((loss, grads), AXIS)

        def after_update(params, extra):
            return method.after_update(params, extra, progress)

        state, update_metrics = update(state, loss, grads, extra, optimizer, after_update)
        return state, metrics | update_metrics | _outside(boxes["global"], config.crops)

    return parallel.data_parallel(
        train_step, mesh, in_specs=(P(), P(AXIS), P()), out_specs=(P(), P()), donate=(0,)
    )


def _outside(boxes: jax.Array, settings: ml_collections.ConfigDict) -> dict[str, jax.Array]:
    """The fraction of the global batch whose overlap is out of a restricted range."""
    if not limits_overlap(settings):
        return {}
    outside = similarity.is_outside(
        boxes, settings.overlap, settings.min_overlap, settings.max_overlap
    )
    return {"crops_outside": lax.pmean(jnp.mean(outside), AXIS)}

"""The training state and the compiled data-parallel step."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gsjax import augment
from gsjax.config import settings
from gsjax.methods import Method
from gsjax.models.resnet import at_least_float32
from gsjax.runtime import parallel
from gsjax.runtime.parallel import AXIS


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: [] int32, steps done.
      params: {module: parameters}.
      batch_stats: {module: running statistics of its BN}.
      opt_state: of the optimiser.
      finite: [] bool, whether loss, gradients and parameters have been so in every step. Once they
        were not, nothing changes any more.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    finite: jax.Array


def create_state(
    method: Method, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """Returns the state before the first step."""
    params, batch_stats = method.init(key)
    return first_state(params, batch_stats, optimizer)


def first_state(
    params: Any, batch_stats: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns the state of step 0 with these parameters."""
    zero, finite = jnp.zeros((), jnp.int32), jnp.ones((), bool)
    return TrainState(zero, params, batch_stats, optimizer.init(params), finite)


def update(
    state: TrainState,
    loss: jax.Array,
    grads: Any,
    batch_stats: Any,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes a step of the optimiser, unless loss, gradients or what comes out are not finite.

    Args:
      state: before the step.
      loss: [] of the global batch.
      grads: of the global batch, like `state.params`.
      batch_stats: after the step.
      optimizer: makes updates of the gradients.

    Returns:
      The state after the step, and the metrics `loss`, `grad_norm` and `finite`. A state that is
      not finite any more is the last good one, however many steps are taken on it.
    """
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # The very step may overflow, though it began with finite gradients.
    norms = jnp.stack([loss, grad_norm, optax.tree.norm((params, batch_stats))])
    finite = state.finite & jnp.isfinite(norms).all()
    new = TrainState(state.step + 1, params, batch_stats, opt_state, finite)
    kept = jax.tree.map(lambda x, old: jnp.where(finite, x, old), new, state)
    metrics = {"loss": loss, "grad_norm": grad_norm, "finite": finite}
    return kept.replace(finite=finite), metrics


def keys(config: ml_collections.ConfigDict) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of the initial weights and of the augmentations."""
    init_key, step_key = jax.random.split(seed_key(config.seed))
    return init_key, step_key


def seed_key(seed: int) -> jax.Array:
    """Returns the key of a seed.

    Of Threefry, whatever JAX_DEFAULT_PRNG_IMPL says: the draws of others depend on the devices.
    """
    return jax.random.key(seed, impl="threefry2x32")


@jax.jit
def marked_finite(state: TrainState) -> TrainState:
    """Returns the last good state as one to go on from."""
    finite = jnp.ones_like(state.finite)
    return TrainState(state.step, state.params, state.batch_stats, state.opt_state, finite)


def create_state_fn(method: Method, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """Compiles a key of the initial weights -> the state, the same on every device of `mesh`."""
    return jax.jit(
        lambda key: create_state(method, optimizer, key),
        out_shardings=parallel.replicated(mesh),
    )


def normalisation(config: ml_collections.ConfigDict) -> tuple[tuple, tuple]:
    """Returns the channels' means and standard deviations, in [0, 1]."""
    return (
        settings.triple("data.mean", config.data.mean),
        settings.triple("data.std", config.data.std),
    )


def image_dtype(config: ml_collections.ConfigDict) -> Any:
    """The type of normalised pixels: float32, or float64 when all is."""
    return at_least_float32(config.encoder.dtype)


def pixels(config: ml_collections.ConfigDict) -> tuple[tuple, tuple, Any]:
    """Returns mean, standard deviation and type of normalised pixels."""
    return *normalisation(config), image_dtype(config)


def encoder_variables(state: TrainState) -> dict[str, Any]:
    """Returns what the encoder's `apply` takes."""
    return {"params": state.params["encoder"], "batch_stats": state.batch_stats["encoder"]}


def augment_batch(
    views: jax.Array, key: jax.Array, position: jax.Array, config: ml_collections.ConfigDict
) -> jax.Array:
    """Augments both views of a batch, each by a key of its own.

    Args:
      views: [B, 2, S, S, 3] uint8.
      key: of the step.
      position: [B] places in the global batch, which make an image's augmentation independent of
        the number of devices.
      config: the whole configuration.

    Returns:
      [2, B, S, S, 3] normalised views.
    """
    mean, std, dtype = pixels(config)
    keys = jax.vmap(lambda p: jax.random.split(jax.random.fold_in(key, p)), out_axes=1)(position)
    return jax.vmap(
        lambda k, x: augment.augment(k, x, config.augment, mean, std, dtype), in_axes=(0, 1)
    )(keys, views)


def create_train_step(
    config: ml_collections.ConfigDict,
    method: Method,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """Compiles (state, batch, key) -> (state, metrics) over the devices of `mesh`.

    `metrics["finite"]` is `state.finite`, which cannot be read once the state is donated on. The
    batch holds `views` uint8 [B, 2, S, S, 3] and `boxes` float32 [B, 2, 4], split over the
    devices; state, key and metrics are replicated, the state is donated. Every device
    differentiates the mean loss of its own anchors, then the gradients are averaged, which gives
    the gradient of the mean over the global batch.
    """

    def train_step(state: TrainState, batch: dict, key: jax.Array):
        local = len(batch["views"])
        position = lax.axis_index(AXIS) * local + jnp.arange(local)
        step_key = jax.random.fold_in(key, state.step)
        views = augment_batch(batch["views"], step_key, position, config)

        def loss_fn(params):
            return method.loss(params, state.batch_stats, views, batch["boxes"])

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (batch_stats, metrics)), grads = gradient(state.params)
        loss, grads = lax.pmean((loss, grads), AXIS)
        state, taken = update(state, loss, grads, batch_stats, optimizer)
        return state, metrics | taken

    return parallel.data_parallel(
        train_step, mesh, in_specs=(P(), P(AXIS), P()), out_specs=(P(), P()), donate=(0,)
    )

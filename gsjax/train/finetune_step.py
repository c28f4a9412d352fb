"""What fine-tuning compiles: the state, the optimizer and the data-parallel step."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gsjax import augment
from gsjax.evaluate import classifier
from gsjax.evaluate.encoder import Encoder
from gsjax.runtime import parallel
from gsjax.runtime.parallel import AXIS
from gsjax.train.state import TrainState, create_state, update
from gsjax.train.step import NETWORK

_MOMENTUM = 0.9


def encoder_variables(params: Any, extra: Any) -> dict[str, Any]:
    """Returns the variables of the encoder in a network."""
    return {"params": params["encoder"], "batch_stats": extra["batch_stats"]}


def create_optimizer(
    schedule: optax.Schedule, rates: Any, weight_decay: float, nesterov: bool
) -> optax.GradientTransformation:
    """SGD with momentum 0.9, and a learning rate per parameter.

    Args:
      schedule: factor of all rates, per step.
      rates: the learning rates, a tree like the parameters.
      weight_decay: added to the gradients of weights that are trained; not of vectors, such as
        biases and the parameters of normalization.
      nesterov: whether the momentum is Nesterov's.
    """

    def is_decayed(params: Any) -> Any:
        return jax.tree.map(lambda x, rate: x.ndim > 1 and rate > 0, params, rates)

    def scaled(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda x, rate: x * rate, updates, rates)

    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=is_decayed),
        optax.sgd(schedule, momentum=_MOMENTUM, nesterov=nesterov),
        optax.stateless(scaled),
    )


def create_state_fn(
    shape: tuple[int, int], dtype: Any, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Any:
    """Compiles (key, variables of the encoder) -> state with a head [F, C], on every device."""

    def create(key: jax.Array, variables: Any) -> TrainState:
        # Copies, because training donates its state.
        variables = jax.tree.map(jnp.copy, variables)
        params = {
            "encoder": variables["params"],
            "head": classifier.create_head(key, shape, dtype),
        }
        return create_state(params, {"batch_stats": variables["batch_stats"]}, optimizer)

    return jax.jit(create, out_shardings=parallel.replicated(mesh))


def create_train_step(
    encoder: Encoder,
    settings: ml_collections.ConfigDict,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    label_smoothing: float = 0.0,
) -> jax.stages.Wrapped:
    """Compiles (state, batch, key) -> (state, metrics) over the devices.

    The batch holds `global`, Crops of one view, and `label` int32 [B]; the only augmentation on the
    device is the horizontal flip. With smoothing s, the target of each of C classes is s / C, that
    of the label 1 - s + s / C (arXiv:1512.00567, 7).
    """
    mean, std, dtype = encoder.normalization

    def train_step(state: TrainState, batch: dict, key: jax.Array):
        local = len(batch["label"])
        position = lax.axis_index(AXIS) * local + jnp.arange(local)
        step_key = jax.random.fold_in(key, state.step)
        of_images = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        keys = of_images(step_key, position)
        images = augment.augment(keys, batch["global"].images[:, 0], settings, mean, std, dtype)
        network_keys = of_images(jax.random.fold_in(step_key, NETWORK), position)

        def loss_fn(params):
            variables = encoder_variables(params, state.extra)
            outputs, changes = encoder.module.apply(
                variables, images, True, network_keys, mutable=["batch_stats"]
            )
            logits = classifier.logits(outputs.pooled, params["head"])
            targets = jax.nn.one_hot(batch["label"], logits.shape[1], dtype=logits.dtype)
            targets = optax.smooth_labels(targets, label_smoothing)
            hits = jnp.argmax(logits, axis=1) == batch["label"]
            loss = jnp.mean(optax.softmax_cross_entropy(logits, targets))
            return loss, (100 * jnp.mean(hits), changes.get("batch_stats", {}))

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (top1, batch_stats)), grads = gradient(state.params)
        loss, top1, grads = lax.pmean((loss, top1, grads), AXIS)
        extra = {"batch_stats": batch_stats}
        state, values = update(state, loss, grads, extra, optimizer)
        return state, values | {"top1": top1}

    return parallel.data_parallel(
        train_step, mesh, in_specs=(P(), P(AXIS), P()), out_specs=(P(), P()), donate=(0,)
    )

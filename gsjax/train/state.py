"""The training state and its update."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: [] int32, steps taken.
      params: {network: parameters}, which the optimizer trains.
      extra: a mapping of everything else: BatchNorm statistics, a target network, a queue.
      opt_state: the optimizer's state.
      finite: [] bool, whether loss, gradients and parameters were finite in every step. Once it is
        False, nothing changes anymore.
    """

    step: jax.Array
    params: Any
    extra: Any
    opt_state: Any
    finite: jax.Array


def create_state(params: Any, extra: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state at step 0."""
    zero, finite = jnp.zeros((), jnp.int32), jnp.ones((), bool)
    return TrainState(zero, params, extra, optimizer.init(params), finite)


def update(
    state: TrainState,
    loss: jax.Array,
    grads: Any,
    extra: Any,
    optimizer: optax.GradientTransformation,
    after_update: Callable[[Any, Any], Any] = lambda params, extra: extra,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes an optimizer step unless the loss, the gradients or the result are not finite.

    Args:
      state: state before the step.
      loss: [] loss of the global batch.
      grads: gradients of the global batch, like `state.params`.
      extra: `extra` after the forward pass.
      optimizer: turns gradients into updates.
      after_update: (new parameters, extra) -> new extra.

    Returns:
      The state after the step, and the metrics `loss`, `grad_norm` and `finite`. Once not finite,
      the state stays the last good one, however many steps are taken.
    """
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    extra = after_update(params, extra)
    # The step itself may overflow even if its gradients are finite.
    norms = jnp.stack([loss, grad_norm, optax.tree.norm((params, extra))])
    finite = state.finite & jnp.isfinite(norms).all()
    new = TrainState(state.step + 1, params, extra, opt_state, finite)
    kept = jax.tree.map(lambda x, old: jnp.where(finite, x, old), new, state)
    metrics = {"loss": loss, "grad_norm": grad_norm, "finite": finite}
    return dataclasses.replace(kept, finite=finite), metrics


@jax.jit
def marked_finite(state: TrainState) -> TrainState:
    """Returns the last good state, ready to resume from."""
    return dataclasses.replace(state, finite=jnp.ones_like(state.finite))

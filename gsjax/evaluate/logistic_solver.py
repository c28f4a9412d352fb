"""L-BFGS for logistic regression with a group of penalties; see `gsjax.evaluate.logistic`."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

HISTORY = 10  # pairs that L-BFGS remembers
REFRESH = 5  # iterations between estimates of the curvature
SEARCH_STEPS = 12  # at most, per line search
SLOPE = 0.5  # a line search ends once the slope has fallen to this fraction of the first


def _sum_classes(x):
    """[L, C, N] -> [L, 1, N]."""
    # XLA's CPU code for such a sum is ten times slower if the terms are fused into it.
    return jnp.sum(lax.optimization_barrier(x), axis=1, keepdims=True)


def _softmax_loss(logits, onehot):
    """[L, C, N] logits, [1, C, N] -> losses [L], residuals p - y, mean p (1 - p) [L, C, 1]."""
    top = jnp.max(logits, axis=1, keepdims=True)
    own = _sum_classes(logits * onehot)
    # Sum over the other classes instead of 1 - p: at small l2, p is 1 but for its last digits.
    powers = lax.optimization_barrier(jnp.where(onehot > 0, 0, jnp.exp(logits - top)))
    others = _sum_classes(powers)
    total = others + jnp.exp(own - top)
    behind = top - own
    losses = jnp.where(behind == 0, jnp.log1p(others), behind + jnp.log(total))
    residuals = jnp.where(onehot > 0, -others, powers) / total
    curvature = jnp.mean(jnp.abs(residuals) * (1 - jnp.abs(residuals)), axis=2, keepdims=True)
    return jnp.sum(losses, axis=(1, 2)), residuals, curvature


def _binary_loss(logits, signs):
    """Like `_softmax_loss`, with [1, C, N] signs in {1, -1, 0}; 0 has weight zero."""
    margins = signs * logits
    losses = jnp.where(signs == 0, 0, jax.nn.softplus(-margins))
    residuals = -signs * jax.nn.sigmoid(-margins)
    curvature = jnp.mean(jnp.abs(residuals) * (1 - jnp.abs(residuals)), axis=2, keepdims=True)
    return jnp.sum(losses, axis=(1, 2)), residuals, curvature


class _State(NamedTuple):
    """Weights are [L, C, R + 1] on the principal axes, divided by `scale`, which has their shape.

    logits and residuals are [L, C, N]. `lbfgs` has one count for all values, and its histories
    are [HISTORY, L, C, R + 1].
    """

    weights: jax.Array
    logits: jax.Array
    gradient: jax.Array
    objective: jax.Array
    curvature: jax.Array
    scale: jax.Array
    lbfgs: optax.ScaleByLBFGSState
    active: jax.Array
    converged: jax.Array
    iterations: jax.Array
    step: jax.Array


_AXES = optax.ScaleByLBFGSState(
    count=None,  # one for all values
    params=0,
    updates=0,
    diff_params_memory=1,
    diff_updates_memory=1,
    weights_memory=1,
)


def _batched(update, num_values):
    """Maps the L-BFGS update over the values; a single one without `vmap`, in half the CPU time."""
    if num_values > 1:
        return jax.vmap(update, in_axes=(0, _AXES, 0), out_axes=(0, _AXES))

    def one(gradient, state, weights):
        def move(fn, state):
            pairs = zip(state, _AXES, strict=True)
            moved = [x if axis is None else fn(x, axis) for x, axis in pairs]
            return optax.ScaleByLBFGSState(*moved)

        direction, state = update(gradient[0], move(jnp.squeeze, state), weights[0])
        return direction[None], move(jnp.expand_dims, state)

    return one


def _sum(x):
    return jnp.sum(x, axis=(1, 2))


class _Problem(NamedTuple):
    """The constants of a fit.

    Attributes:
      features: [N, R + 1].
      spread: [1, 1, R + 1] sums of squares of the features.
      signs: [1, C, N].
      penalty: [L, 1, R + 1], 0 for the bias.
      loss: `_softmax_loss` or `_binary_loss`.
    """

    features: jax.Array
    spread: jax.Array
    signs: jax.Array
    penalty: jax.Array
    loss: Callable


def _products(problem: _Problem, weights: jax.Array) -> jax.Array:
    """[L, C, R + 1] unscaled weights -> logits [L, C, N]."""
    flat = weights.reshape(-1, weights.shape[-1])
    result = jnp.matmul(flat, problem.features.T, precision=lax.Precision.HIGHEST)
    return result.reshape(*weights.shape[:2], len(problem.features))


def _evaluate(problem: _Problem, weights: jax.Array, logits: jax.Array, scale: jax.Array) -> tuple:
    """Returns the objective [L], its gradient and the curvature [L, C, 1] at scaled weights."""
    value, residuals, curvature = problem.loss(logits, problem.signs)
    flat = residuals.reshape(-1, len(problem.features))
    gradient = jnp.matmul(flat, problem.features, precision=lax.Precision.HIGHEST)
    gradient = gradient.reshape(weights.shape)
    raw = scale * weights
    value = value + _sum(problem.penalty * jnp.square(raw)) / 2
    # The floor is for classes without examples.
    return value, scale * (gradient + problem.penalty * raw), jnp.maximum(curvature, 1e-12)


def _search(problem: _Problem, state: _State, direction: jax.Array, change: jax.Array) -> jax.Array:
    """Returns step lengths [L] along the direction, 0 where there is no descent.

    `change` [L, C, N] is the direction's logits.
    """
    penalized = problem.penalty * jnp.square(state.scale)
    linear = _sum(penalized * state.weights * direction)
    quadratic = _sum(penalized * jnp.square(direction))

    def slope(step):
        _, residuals, _ = problem.loss(state.logits + step[:, None, None] * change, problem.signs)
        return _sum(residuals * change) + linear + step * quadratic

    first = _sum(state.gradient * direction)
    descends = state.active & (first < 0)

    def searching(carry):
        return jnp.any(~carry[1]) & (carry[-1] < SEARCH_STEPS)

    def narrow(carry):
        step, done, low, low_slope, high, high_slope, count = carry
        here = slope(step)
        done = done | (jnp.abs(here) <= SLOPE * -first)
        # The slope only rises: a secant inside the bracket, or a step ahead if there is none.
        ahead = step - here * (step - low) / jnp.where(here > low_slope, here - low_slope, 1)
        ahead = jnp.clip(ahead, 1.5 * step, 8 * step)
        up = here < 0
        low, low_slope = jnp.where(up, step, low), jnp.where(up, here, low_slope)
        high, high_slope = jnp.where(up, high, step), jnp.where(up, high_slope, here)
        width = jnp.where(jnp.isinf(high), 0, high - low)
        inside = low + width * jnp.clip(low_slope / (low_slope - high_slope), 0.1, 0.9)
        step = jnp.where(done, step, jnp.where(jnp.isinf(high), ahead, inside))
        return step, done, low, low_slope, high, high_slope, count + 1

    zeros, ones = jnp.zeros_like(first), jnp.ones_like(first)
    carry = (ones, ~descends, zeros, first, ones * jnp.inf, ones, 0)
    step, done, low, *_ = lax.while_loop(searching, narrow, carry)
    return jnp.where(descends, jnp.where(done, step, low), 0)


def _iterate(problem: _Problem, lbfgs_update: Callable, tolerance: float, state: _State) -> _State:
    """Takes one L-BFGS step."""
    direction, lbfgs_state = lbfgs_update(state.gradient, state.lbfgs, state.weights)
    # At zero weights the scale is the exact Hessian's, so the gradient is the Newton step.
    direction = -jnp.where(state.step == 0, state.gradient, direction)
    change = _products(problem, state.scale * direction)
    step = _search(problem, state, direction, change)[:, None, None]
    weights = state.weights + step * direction
    logits = state.logits + step * change
    objective, gradient, curvature = _evaluate(problem, weights, logits, state.scale)
    squares = jnp.square(gradient / state.scale)
    left = _sum(squares / (curvature * problem.spread + problem.penalty)) / 2
    converged = state.converged | (state.active & (left <= tolerance * objective))
    return _State(
        weights=weights,
        logits=logits,
        gradient=gradient,
        objective=objective,
        curvature=curvature,
        scale=state.scale,
        lbfgs=lbfgs_state,
        active=state.active & ~converged & (step[:, 0, 0] > 0),
        converged=converged,
        iterations=state.iterations + state.active,
        step=state.step + 1,
    )


def _rescale(problem: _Problem, state: _State) -> _State:
    """Refreshes the scale and expresses the same state in it."""
    scale = lax.rsqrt(state.curvature * problem.spread + problem.penalty)
    ratio = scale / state.scale
    weights = state.weights / ratio
    memory = state.lbfgs
    return state._replace(
        weights=weights,
        gradient=state.gradient * ratio,
        scale=scale,
        # Recomputed: the sum over the steps has accumulated rounding errors.
        logits=_products(problem, scale * weights),
        lbfgs=memory._replace(
            params=memory.params / ratio,
            updates=memory.updates * ratio,
            diff_params_memory=memory.diff_params_memory / ratio[None],
            diff_updates_memory=memory.diff_updates_memory * ratio[None],
        ),
    )


def _initial_state(problem: _Problem, start: jax.Array, lbfgs_init: Callable) -> _State:
    """Returns the state at unscaled weights [L, C, R + 1]."""
    num_values = len(start)
    logits = _products(problem, start)
    ones = jnp.ones_like(start)
    objective, gradient, curvature = _evaluate(problem, start, logits, ones)
    return _State(
        weights=start,
        logits=logits,
        gradient=gradient,
        objective=objective,
        curvature=curvature,
        scale=ones,
        lbfgs=jax.vmap(lbfgs_init, out_axes=_AXES)(start),
        active=jnp.ones(num_values, bool),
        converged=jnp.zeros(num_values, bool),
        iterations=jnp.zeros(num_values, jnp.int32),
        step=jnp.int32(0),
    )


@functools.partial(jax.jit, static_argnums=5)
def solve(
    features: jax.Array,
    signs: jax.Array,
    spread: jax.Array,
    l2: jax.Array,
    start: jax.Array,
    multinomial: bool,
    max_iterations: int,
    tolerance: float,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Fits a group of penalties.

    Args:
      features: [N, R + 1] on the principal axes, the last column ones.
      signs: [C, N], one-hot or 1, -1 and 0.
      spread: [R + 1] sums of squares of the features.
      l2: [L].
      start: [L, C, R + 1] weights to start from, the bias in the last column.
      multinomial: softmax over the classes, or a sigmoid for each of them.
      max_iterations: as in `logistic.fit`.
      tolerance: as in `logistic.fit`.

    Returns:
      Weights [L, C, R + 1], objective, converged and iterations [L].
    """
    dim = len(spread)
    penalty = jnp.where(jnp.arange(dim) < dim - 1, l2[:, None], 0)[:, None, :]
    loss = _softmax_loss if multinomial else _binary_loss
    problem = _Problem(features, spread[None, None, :], signs[None], penalty, loss)
    lbfgs = optax.scale_by_lbfgs(HISTORY)
    iterate = functools.partial(_iterate, problem, _batched(lbfgs.update, len(l2)), tolerance)

    def refresh(state):
        """Refreshes the scale, then iterates some more."""
        state = _rescale(problem, state)
        end = jnp.minimum(state.step + REFRESH, max_iterations)
        return lax.while_loop(lambda s: jnp.any(s.active) & (s.step < end), iterate, state)

    state = _initial_state(problem, start, lbfgs.init)
    state = lax.while_loop(lambda s: jnp.any(s.active) & (s.step < max_iterations), refresh, state)
    return state.scale * state.weights, state.objective, state.converged, state.iterations

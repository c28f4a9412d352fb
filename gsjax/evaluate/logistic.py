"""L2-regularised logistic regression by L-BFGS on the device, for a path of penalties.

For each l2 the objective is the sum over examples of the cross-entropy plus l2 / 2 |W|^2, with the
bias unpenalised, on the features as they are: scikit-learn's `LogisticRegression(C=1 / l2)`, and
the protocol of Kornblith et al. 2019 and SimCLR (B.8). Four properties make it quick:

- Neither a shift nor a rotation of the features changes the optimum: the bias takes the one, |W|
  is blind to the other. So they are centred and rotated onto their principal axes once, in float64
  on the host. With fewer examples than features the axes span the examples, where W must lie.
- There the Hessian is near diagonal, c_k lambda_d + l2 for class k and axis d, with lambda_d the
  sum of squares along the axis and c_k the mean p (1 - p) of the class: L-BFGS runs on W / s with
  s = (c_k lambda_d + l2)^(-1/2). c_k sinks as the fit tightens, so s is renewed every few
  iterations; the history of L-BFGS is carried over, for it is only seen from other coordinates.
- Logits are linear along a search direction: a line search needs one matrix product, not one for
  each of its steps.
- The solution is smooth in log l2: two neighbours on the grid tell where to start.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from gsjax.errors import UserError

GRID = np.logspace(-6, 5, 45)  # of l2, as in Kornblith et al. 2019
HISTORY = 10  # pairs that L-BFGS remembers
REFRESH = 5  # iterations between two estimates of the curvature
SEARCH_STEPS = 12  # at most, in a line search
SLOPE = 0.5  # a line search ends where the slope has fallen to this part of the first
ROWS = 8192  # examples that are centred or multiplied at a time


class Fit(NamedTuple):
    """Classifiers of L penalties: logits are `features @ weights[i] + biases[i]`.

    weights [L, D, C], biases [L, C], objective [L] with the penalty, converged [L] (bool, see
    `fit`) and iterations [L] (int).
    """

    weights: np.ndarray
    biases: np.ndarray
    objective: np.ndarray
    converged: np.ndarray
    iterations: np.ndarray


class Selection(NamedTuple):
    """Position of the chosen l2, and whether it is the smallest or the largest that was tried."""

    position: int
    at_end: bool


def fit(
    features: np.ndarray,
    targets: np.ndarray,
    num_classes: int,
    l2: np.ndarray = GRID,
    max_iterations: int = 200,
    tolerance: float = 1e-6,
    memory_gb: float = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Fit:
    """Minimises the objective for each value of l2, from the largest to the smallest.

    The first value, or group of values, starts from zero; those after it start on the line through
    the last two solutions, as functions of log l2. On the grid this makes the whole path as cheap
    as one small l2 from zero, and one value at a time cheaper than many at once.

    A value has converged when g^T H^-1 g / 2 <= tolerance * objective, where g is the gradient and
    H the diagonal estimate of the Hessian above: about the part of the objective that is left to
    gain. The estimate may be a few times too small; with the default the objective is within 1e-5
    of the optimum where l2 >= 0.01. A value that reaches `max_iterations`, or from where rounding
    allows no descent, is returned as it stands with `converged` False.

    Args:
      features: [N, D], computed in float32, or in float64 where they are and JAX allows it.
      targets: [N] integers in [0, C) for softmax cross-entropy over C classes; or [N, C] with 1
        (positive), -1 (negative) and 0 (left out) for the sum over the classes of binary
        cross-entropies.
      num_classes: C.
      l2: [L] penalties, positive.
      max_iterations: of L-BFGS, each with one or more softmaxes and two matrix products.
      tolerance: see above.
      memory_gb: as many values as fit in are fitted at once; at least one, and one if it is 0.
      progress: called with the number of values that are done, after each group.

    Returns:
      A `Fit` of NumPy arrays.

    Raises:
      UserError: shapes, labels or penalties that do not fit, or features that are not finite.
    """
    features, targets, l2 = np.asarray(features), np.asarray(targets), np.asarray(l2, np.float64)
    _check(features, targets, num_classes, l2)
    dtype = jnp.promote_types(jax.dtypes.canonicalize_dtype(features.dtype), jnp.float32)
    rotated, spread, axes, mean = _principal_axes(features, dtype)
    multinomial = targets.ndim == 1
    if multinomial:
        signs = (np.arange(num_classes)[:, None] == targets[None, :]).astype(dtype)
    else:
        signs = targets.T.astype(dtype)
    arrays = [jnp.asarray(array) for array in (rotated, signs, spread.astype(dtype))]
    axes = jnp.asarray(axes, dtype)

    size = group_size(len(l2), len(features), len(spread), num_classes, dtype, memory_gb)
    order = np.argsort(-l2, kind="stable")
    # The last group is filled up, so that one compilation serves all.
    padded = np.pad(order, (0, -len(l2) % size), mode="edge")
    path: list[tuple[float, jax.Array]] = []
    parts = []
    for first in range(0, len(l2), size):
        group = l2[padded[first : first + size]]
        start = _start(path, group, (num_classes, len(spread)), dtype)
        values = jnp.asarray(group, dtype)
        result = _fit(*arrays, values, start, multinomial, max_iterations, tolerance)
        path = (path + list(zip(group, result[0], strict=True)))[-2:]
        weights = np.asarray(_back(result[0], axes))
        # In float64: far from the origin this is the difference of large numbers.
        biases = np.float64(result[0][..., -1]) - np.sum(mean[:, None] * weights, axis=1)
        parts.append((weights, biases.astype(dtype), *map(np.asarray, result[1:])))
        progress(min(first + size, len(l2)))
    back = np.argsort(order)
    return Fit(*(np.concatenate(part)[back] for part in zip(*parts, strict=True)))


def logits(features: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """Computes `features @ weights + biases` on the device, at the highest precision.

    Args:
      features: [N, D].
      weights: [D, C] of one classifier, or [L, D, C].
      biases: [C] or [L, C].

    Returns:
      [N, C], or [L, N, C]. L * N * C values may be many: then call it for each classifier.
    """
    classifier = jnp.asarray(weights), jnp.asarray(biases)
    parts = [
        np.asarray(_logits(jnp.asarray(features[i : i + ROWS], weights.dtype), *classifier))
        for i in range(0, len(features), ROWS)
    ]
    return np.concatenate(parts, axis=-2)


def select(scores: np.ndarray, l2: np.ndarray = GRID) -> Selection:
    """Chooses the l2 with the highest validation score, of equal ones the smallest.

    Args:
      scores: [L], higher is better.
      l2: [L] in any order.

    Returns:
      A `Selection`; `at_end` says that the optimum may lie outside of what was tried.

    Raises:
      UserError: the lengths differ or a score is not a number.
    """
    scores, l2 = np.asarray(scores, np.float64), np.asarray(l2, np.float64)
    if scores.shape != l2.shape or scores.ndim != 1 or not scores.size or np.isnan(scores).any():
        raise UserError(
            f"{scores.shape} scores for {l2.shape} values of l2: give one number for each value"
        )
    position = min(np.flatnonzero(scores == scores.max()), key=lambda i: l2[i])
    return Selection(int(position), bool(l2[position] in (l2.min(), l2.max())))


def group_size(
    num_values: int, rows: int, columns: int, num_classes: int, dtype, memory_gb: float
) -> int:
    """How many of `num_values` penalties are fitted together: groups of about equal size."""
    # Logits, their direction, residuals and three temporaries; history and eight of W's shape.
    floats = num_classes * (6 * rows + (2 * HISTORY + 8) * columns)
    most = max(1, int(memory_gb * 2**30 / (floats * np.dtype(dtype).itemsize)))
    groups = -(-num_values // most)
    return -(-num_values // groups)


def _check(features, targets, num_classes, l2):
    if features.ndim != 2 or not features.size:
        raise UserError(f"features of shape {features.shape}: give [N, D]")
    if l2.ndim != 1 or not l2.size or not np.all((l2 > 0) & np.isfinite(l2)):
        raise UserError(f"l2 must be a list of positive numbers, not {l2}")
    if not np.isfinite(features).all():
        raise UserError("features have values that are not finite: look at the encoder")
    if targets.shape == features.shape[:1]:
        if num_classes < 2 or targets.min() < 0 or targets.max() >= num_classes:
            raise UserError(
                f"labels from {targets.min()} to {targets.max()} with {num_classes} classes: "
                "give 0 to classes - 1, two classes or more"
            )
    elif targets.shape != (len(features), num_classes):
        raise UserError(
            f"targets of shape {targets.shape} for features of shape {features.shape} and "
            f"{num_classes} classes: give labels [N], or 1, -1 and 0 [N, C]"
        )
    elif not np.isin(targets, (-1, 0, 1)).all():
        raise UserError("targets [N, C] have other values than 1, -1 and 0")


def _principal_axes(features, dtype):
    """Centres and rotates [N, D] features, and appends a column of ones for the bias.

    Returns:
      [N, R + 1] in `dtype`; [R + 1] sums of squares of the columns; [D, R] axes; [D] mean.
    """
    num, dim = features.shape
    mean = features.mean(axis=0, dtype=np.float64)
    chunks = [slice(i, i + ROWS) for i in range(0, num, ROWS)]
    if dim <= num:
        gram = np.zeros((dim, dim))
        for chunk in chunks:
            part = features[chunk] - mean
            gram += part.T @ part
    else:
        centred = features - mean
        gram = centred @ centred.T
    spread, axes = np.linalg.eigh(gram)
    # Directions without spread, such as features that are always zero, keep a weight of zero.
    kept = spread > spread[-1] * max(num, dim) * np.finfo(np.float64).eps
    spread, axes = spread[kept], axes[:, kept]
    if dim > num:
        axes = centred.T @ axes / np.sqrt(spread)
    rotated = np.ones((num, len(spread) + 1), dtype)
    for chunk in chunks:
        rotated[chunk, :-1] = (features[chunk] - mean) @ axes
    return rotated, np.append(spread, num), axes, mean


@jax.jit
def _back(rotated, axes):
    """[L, C, R + 1] weights on the [D, R] axes -> [L, D, C]."""
    weights = jnp.swapaxes(rotated[..., :-1], 1, 2)
    return jnp.matmul(axes, weights, precision=lax.Precision.HIGHEST)


def _start(path, l2, shape, dtype):
    """[L] penalties -> [L, C, R + 1] to start from, given the last solutions as (l2, weights).

    The solution is a smooth function of log l2, nearly straight from one value to the next.
    """
    if not path:
        return jnp.zeros((len(l2), *shape), dtype)
    (before, older), (last, newer) = path[0], path[-1]
    ahead = np.zeros(len(l2))
    if before > last:
        # Not further ahead than twice the distance between the two.
        ahead = np.minimum(np.log(last / l2) / np.log(before / last), 2)
    return newer[None] + jnp.asarray(ahead, dtype)[:, None, None] * (newer - older)[None]


@jax.jit
def _logits(features, weights, biases):
    product = jnp.matmul(features, weights, precision=lax.Precision.HIGHEST)
    return product + jnp.expand_dims(biases, -2)


def _sum_classes(x):
    """[L, C, N] -> [L, 1, N]."""
    # XLA's CPU code for such a sum is ten times slower if it computes the terms within it.
    return jnp.sum(lax.optimization_barrier(x), axis=1, keepdims=True)


def _softmax_loss(logits, onehot):
    """[L, C, N] logits, [1, C, N] -> losses [L], residuals p - y, mean p (1 - p) [L, C, 1]."""
    top = jnp.max(logits, axis=1, keepdims=True)
    own = _sum_classes(logits * onehot)
    # What the other classes have, not 1 - p: at small l2 all but the last digits of p are 1.
    powers = lax.optimization_barrier(jnp.where(onehot > 0, 0, jnp.exp(logits - top)))
    others = _sum_classes(powers)
    total = others + jnp.exp(own - top)
    behind = top - own
    losses = jnp.where(behind == 0, jnp.log1p(others), behind + jnp.log(total))
    residuals = jnp.where(onehot > 0, -others, powers) / total
    curvature = jnp.mean(jnp.abs(residuals) * (1 - jnp.abs(residuals)), axis=2, keepdims=True)
    return jnp.sum(losses, axis=(1, 2)), residuals, curvature


def _binary_loss(logits, signs):
    """As `_softmax_loss`, with [1, C, N] signs in {1, -1, 0}; 0 has weight zero."""
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
    """Maps the update of L-BFGS over the values; one alone without `vmap`, in half the CPU time."""
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


@functools.partial(jax.jit, static_argnums=5)
def _fit(features, signs, spread, l2, start, multinomial, max_iterations, tolerance):
    """Fits a group of penalties.

    Args:
      features: [N, R + 1] on the principal axes, the last column ones.
      signs: [C, N], one-hot or 1, -1 and 0.
      spread: [R + 1] sums of squares of the features.
      l2: [L].
      start: [L, C, R + 1] weights to start from, the bias in the last column.
      multinomial, max_iterations, tolerance: as in `fit`.

    Returns:
      Weights [L, C, R + 1], objective, converged and iterations [L].
    """
    num_values, (num_classes, num), dim = len(l2), signs.shape, len(spread)
    shape = (num_values, num_classes, dim)
    penalty = jnp.where(jnp.arange(dim) < dim - 1, l2[:, None], 0)[:, None, :]
    spread = spread[None, None, :]
    loss = _softmax_loss if multinomial else _binary_loss
    lbfgs = optax.scale_by_lbfgs(HISTORY)
    lbfgs_update = _batched(lbfgs.update, num_values)
    signs = signs[None]

    def products(weights):
        flat = weights.reshape(-1, dim)
        result = jnp.matmul(flat, features.T, precision=lax.Precision.HIGHEST)
        return result.reshape(num_values, num_classes, num)

    def evaluate(weights, logits, scale):
        value, residuals, curvature = loss(logits, signs)
        gradient = jnp.matmul(
            residuals.reshape(-1, num), features, precision=lax.Precision.HIGHEST
        ).reshape(shape)
        raw = scale * weights
        value = value + _sum(penalty * jnp.square(raw)) / 2
        # The floor is for classes without examples.
        return value, scale * (gradient + penalty * raw), jnp.maximum(curvature, 1e-12)

    def search(state, direction, change):
        """Step lengths [L] along the direction, 0 where there is no descent."""
        penalised = penalty * jnp.square(state.scale)
        linear = _sum(penalised * state.weights * direction)
        quadratic = _sum(penalised * jnp.square(direction))

        def slope(step):
            _, residuals, _ = loss(state.logits + step[:, None, None] * change, signs)
            return _sum(residuals * change) + linear + step * quadratic

        first = _sum(state.gradient * direction)
        descends = state.active & (first < 0)

        def searching(carry):
            return jnp.any(~carry[1]) & (carry[-1] < SEARCH_STEPS)

        def narrow(carry):
            step, done, low, low_slope, high, high_slope, count = carry
            here = slope(step)
            done = done | (jnp.abs(here) <= SLOPE * -first)
            # The slope only rises: a secant, kept inside the bracket, or ahead if there is none.
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

    def iterate(state):
        direction, lbfgs_state = lbfgs_update(state.gradient, state.lbfgs, state.weights)
        # At zero weights the scale is the exact Hessian's, and the gradient is Newton's step.
        direction = -jnp.where(state.step == 0, state.gradient, direction)
        change = products(state.scale * direction)
        step = search(state, direction, change)[:, None, None]
        weights = state.weights + step * direction
        logits = state.logits + step * change
        objective, gradient, curvature = evaluate(weights, logits, state.scale)
        squares = jnp.square(gradient / state.scale)
        left = _sum(squares / (curvature * spread + penalty)) / 2
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

    def refresh(state):
        """Renews the scale, sees the same state from there, and iterates some more."""
        scale = lax.rsqrt(state.curvature * spread + penalty)
        ratio = scale / state.scale
        weights = state.weights / ratio
        memory = state.lbfgs
        state = state._replace(
            weights=weights,
            gradient=state.gradient * ratio,
            scale=scale,
            # Afresh: what was summed up over the steps has their rounding errors.
            logits=products(scale * weights),
            lbfgs=memory._replace(
                params=memory.params / ratio,
                updates=memory.updates * ratio,
                diff_params_memory=memory.diff_params_memory / ratio[None],
                diff_updates_memory=memory.diff_updates_memory * ratio[None],
            ),
        )
        end = jnp.minimum(state.step + REFRESH, max_iterations)
        return lax.while_loop(lambda s: jnp.any(s.active) & (s.step < end), iterate, state)

    logits = products(start)
    ones = jnp.ones_like(start)
    objective, gradient, curvature = evaluate(start, logits, ones)
    state = _State(
        weights=start,
        logits=logits,
        gradient=gradient,
        objective=objective,
        curvature=curvature,
        scale=ones,
        lbfgs=jax.vmap(lbfgs.init, out_axes=_AXES)(start),
        active=jnp.ones(num_values, bool),
        converged=jnp.zeros(num_values, bool),
        iterations=jnp.zeros(num_values, jnp.int32),
        step=jnp.int32(0),
    )
    state = lax.while_loop(lambda s: jnp.any(s.active) & (s.step < max_iterations), refresh, state)
    return state.scale * state.weights, state.objective, state.converged, state.iterations

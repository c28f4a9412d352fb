"""L2-regularized logistic regression with L-BFGS on the device, for a path of penalties.

For each l2 the objective is the sum over examples of the cross-entropy plus l2 / 2 |W|^2, with an
unpenalized bias and unscaled features, as in scikit-learn's `LogisticRegression(C=1 / l2)` and the
protocol of Kornblith et al. 2019 and SimCLR (B.8). Four properties make it fast:

- Neither a shift nor a rotation of the features changes the optimum: the bias absorbs the shift,
  and |W| is invariant to rotation. So the features are centered and rotated onto their principal
  axes once, in float64 on the host. With fewer examples than features, the axes span the examples,
  and W must lie in that span.
- On these axes the Hessian is nearly diagonal, c_k lambda_d + l2 for class k and axis d, with
  lambda_d the sum of squares along the axis and c_k the mean p (1 - p) of the class. L-BFGS runs on
  W / s with s = (c_k lambda_d + l2)^(-1/2). c_k shrinks as the fit tightens, so s is refreshed
  every few iterations; the L-BFGS history is kept, expressed in the new coordinates.
- Logits are linear along a search direction, so a line search needs one matrix product, not one
  per step.
- The solution is smooth in log l2, so two neighbors on the grid predict where to start.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gsjax.errors import UserError
from gsjax.evaluate import logistic_solver as solver

GRID = np.logspace(-6, 5, 45)  # of l2, as in Kornblith et al. 2019
ROWS = 8192  # examples centered or multiplied at a time


class Fit(NamedTuple):
    """Classifiers for L penalties: logits are `features @ weights[i] + biases[i]`.

    Attributes:
      weights: [L, D, C].
      biases: [L, C].
      objective: [L], including the penalty.
      converged: bool [L], see `fit`.
      iterations: int [L].
    """

    weights: np.ndarray
    biases: np.ndarray
    objective: np.ndarray
    converged: np.ndarray
    iterations: np.ndarray


class Selection(NamedTuple):
    """The chosen l2.

    Attributes:
      position: its index among the values tried.
      at_end: whether it is the smallest or the largest of them.
    """

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
    """Minimizes the objective for each value of l2, from the largest to the smallest.

    The first value, or group of values, starts from zero; later ones start on the line through the
    last two solutions, as functions of log l2. On the grid, this makes the whole path as cheap as
    one small l2 from zero, and one value at a time cheaper than many together.

    A value has converged when g^T H^-1 g / 2 <= tolerance * objective, where g is the gradient and
    H the diagonal estimate of the Hessian above; the left side estimates how much the objective can
    still decrease. It may be a few times too small; with the default, the objective is within 1e-5
    of the optimum for l2 >= 0.01. A value that reaches `max_iterations`, or cannot descend further
    because of rounding, is returned as is with `converged` False.

    Args:
      features: [N, D], computed in float32, or in float64 if they are float64 and JAX allows it.
      targets: [N] integers in [0, C) for softmax cross-entropy over C classes; or [N, C] with 1
        (positive), -1 (negative) and 0 (left out) for the sum over the classes of binary
        cross-entropies.
      num_classes: C.
      l2: [L] penalties, positive.
      max_iterations: L-BFGS iterations, each of one or more softmaxes and two matrix products.
      tolerance: see above.
      memory_gb: as many values as fit into it are fitted together; at least one, one if it is 0.
      progress: called after each group with the number of values done.

    Returns:
      A `Fit` of NumPy arrays.

    Raises:
      UserError: shapes, labels or penalties are invalid, or features are not finite.
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
    # The last group is padded, so that one compilation serves all.
    padded = np.pad(order, (0, -len(l2) % size), mode="edge")
    path: list[tuple[float, jax.Array]] = []
    parts = []
    for first in range(0, len(l2), size):
        group = l2[padded[first : first + size]]
        start = _start(path, group, (num_classes, len(spread)), dtype)
        values = jnp.asarray(group, dtype)
        result = solver.solve(*arrays, values, start, multinomial, max_iterations, tolerance)
        path = (path + list(zip(group, result[0], strict=True)))[-2:]
        weights = np.asarray(_rotate_back(result[0], axes))
        # In float64: far from the origin, this is a difference of large numbers.
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
      [N, C], or [L, N, C]. If L * N * C values are too many, call it per classifier.
    """
    classifier = jnp.asarray(weights), jnp.asarray(biases)
    parts = [
        np.asarray(_logits(jnp.asarray(features[i : i + ROWS], weights.dtype), *classifier))
        for i in range(0, len(features), ROWS)
    ]
    return np.concatenate(parts, axis=-2)


def select(scores: np.ndarray, l2: np.ndarray = GRID) -> Selection:
    """Chooses the l2 with the highest validation score; ties go to the smallest.

    Args:
      scores: [L], higher is better.
      l2: [L] in any order.

    Returns:
      A `Selection`; `at_end` means that the optimum may lie outside the values tried.

    Raises:
      UserError: the lengths differ or a score is NaN.
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
    """Returns how many of `num_values` penalties to fit together, in groups of similar size."""
    # Logits, their direction, residuals and three temporaries; history and eight of W's shape.
    floats = num_classes * (6 * rows + (2 * solver.HISTORY + 8) * columns)
    most = max(1, int(memory_gb * 2**30 / (floats * np.dtype(dtype).itemsize)))
    groups = -(-num_values // most)
    return -(-num_values // groups)


def _check(features, targets, num_classes, l2):
    if features.ndim != 2 or not features.size:
        raise UserError(f"features must have shape [N, D], not {features.shape}")
    if l2.ndim != 1 or not l2.size or not np.all((l2 > 0) & np.isfinite(l2)):
        raise UserError(f"l2 must be a list of positive numbers, not {l2}")
    if not np.isfinite(features).all():
        raise UserError("features are not finite: check the encoder")
    if targets.shape == features.shape[:1]:
        if num_classes < 2 or targets.min() < 0 or targets.max() >= num_classes:
            raise UserError(
                f"labels from {targets.min()} to {targets.max()} with {num_classes} classes: "
                "use labels from 0 to classes - 1 and at least two classes"
            )
    elif targets.shape != (len(features), num_classes):
        raise UserError(
            f"targets of shape {targets.shape} for features of shape {features.shape} and "
            f"{num_classes} classes: give [N] labels, or [N, C] of 1, -1 and 0"
        )
    elif not np.isin(targets, (-1, 0, 1)).all():
        raise UserError("targets [N, C] must contain only 1, -1 and 0")


def _principal_axes(features, dtype):
    """Centers and rotates [N, D] features, and appends a column of ones for the bias.

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
        centered = features - mean
        gram = centered @ centered.T
    spread, axes = np.linalg.eigh(gram)
    # Directions without spread, such as features that are always zero, keep a weight of zero.
    kept = spread > spread[-1] * max(num, dim) * np.finfo(np.float64).eps
    spread, axes = spread[kept], axes[:, kept]
    if dim > num:
        axes = centered.T @ axes / np.sqrt(spread)
    rotated = np.ones((num, len(spread) + 1), dtype)
    for chunk in chunks:
        rotated[chunk, :-1] = (features[chunk] - mean) @ axes
    return rotated, np.append(spread, num), axes, mean


@jax.jit
def _rotate_back(rotated, axes):
    """[L, C, R + 1] weights on the [D, R] axes -> [L, D, C]."""
    weights = jnp.swapaxes(rotated[..., :-1], 1, 2)
    return jnp.matmul(axes, weights, precision=lax.Precision.HIGHEST)


def _start(path, l2, shape, dtype):
    """[L] penalties -> [L, C, R + 1] to start from, given the last solutions as (l2, weights).

    The solution is a smooth function of log l2, nearly linear from one value to the next.
    """
    if not path:
        return jnp.zeros((len(l2), *shape), dtype)
    (before, older), (last, newer) = path[0], path[-1]
    ahead = np.zeros(len(l2))
    if before > last:
        # At most twice the distance between the two.
        ahead = np.minimum(np.log(last / l2) / np.log(before / last), 2)
    return newer[None] + jnp.asarray(ahead, dtype)[:, None, None] * (newer - older)[None]


@jax.jit
def _logits(features, weights, biases):
    product = jnp.matmul(features, weights, precision=lax.Precision.HIGHEST)
    return product + jnp.expand_dims(biases, -2)

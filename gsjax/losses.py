"""The learning objectives of SimCLR and SimSiam and their graded forms, as pure functions.

Embeddings are [N, D] as the heads give them: they are normalised in here, in at least float32.
Row n of every argument belongs to image n; i and j are its two views. `psi_ij` is the similarity
of view i to view j (`gsjax.similarity.graded(ioa(boxes_i, boxes_j), threshold)`), `psi_ji` the
other way round. Each loss is a scalar, the mean over its anchors.
"""

import jax
import jax.numpy as jnp
from jax import lax

from gsjax.errors import UserError


def nt_xent(
    z_i: jax.Array, z_j: jax.Array, temperature: float, axis_name: str | None = None
) -> jax.Array:
    """NT-Xent (SimCLR, eq. 1 and Algorithm 1; thesis, eq. 9), mean over the 2N anchors.

    Args:
      z_i: [N, D] embeddings of the first views.
      z_j: [N, D] embeddings of the second views.
      temperature: tau, positive.
      axis_name: mapped axis over whose devices the other views are gathered, with gradients
        through the gathering. The anchors stay local: average losses and gradients over the axis.

    Returns:
      The loss, a scalar of float32 or float64.

    Raises:
      UserError: the shapes do not fit.
    """
    _check_shapes(z_i, z_j)
    z_i, z_j = _normalise(z_i), _normalise(z_j)
    positive = -jnp.sum(z_i * z_j, axis=-1) / temperature
    return jnp.mean(positive) + jnp.mean(_log_denominators(z_i, z_j, temperature, axis_name))


def graded_nt_xent(
    z_i: jax.Array,
    z_j: jax.Array,
    psi_ij: jax.Array,
    psi_ji: jax.Array,
    temperature: float,
    scale: float = 1.0,
    axis_name: str | None = None,
) -> jax.Array:
    """NT-Xent with graded similarity (thesis, eq. 10), mean over the 2N anchors.

    An anchor's loss is scale / tau * D_GS + the log-denominator of NT-Xent, the positive included.
    With psi = 1 and scale 0.5 this is `nt_xent` + 1 / tau.

    Args:
      z_i: [N, D] embeddings of the first views.
      z_j: [N, D] embeddings of the second views.
      psi_ij: [N] similarity in [0, 1] for the anchors i.
      psi_ji: [N] similarity in [0, 1] for the anchors j.
      temperature: tau, positive.
      scale: weight of the positive term; 1 is the equation as printed.
      axis_name: as in `nt_xent`.

    Returns:
      The loss, a scalar of float32 or float64.

    Raises:
      UserError: the shapes do not fit.
    """
    _check_shapes(z_i, z_j, psi_ij=psi_ij, psi_ji=psi_ji)
    z_i, z_j = _normalise(z_i), _normalise(z_j)
    positive = (_graded_distance(z_i, z_j, psi_ij) + _graded_distance(z_i, z_j, psi_ji)) / 2
    return scale / temperature * jnp.mean(positive) + jnp.mean(
        _log_denominators(z_i, z_j, temperature, axis_name)
    )


def siamese_mse(p_i: jax.Array, p_j: jax.Array, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
    """Squared distance of prediction and other view (thesis, eq. 3), mean of both directions.

    Args:
      p_i: [N, D] predictions from the first views.
      p_j: [N, D] predictions from the second views.
      z_i: [N, D] embeddings of the first views; no gradient flows into them.
      z_j: [N, D] embeddings of the second views; no gradient flows into them.

    Returns:
      The loss in [0, 4], a scalar of float32 or float64.

    Raises:
      UserError: the shapes do not fit.
    """
    p_i, p_j, z_i, z_j = _siamese_inputs(p_i, p_j, z_i, z_j)
    squares = jnp.square(p_i - z_j) + jnp.square(p_j - z_i)
    return jnp.mean(jnp.sum(squares, axis=-1)) / 2


def siamese_cosine(p_i: jax.Array, p_j: jax.Array, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
    """Negative cosine of prediction and other view (SimSiam, eq. 2), mean of both directions.

    Equals `siamese_mse` / 2 - 1.

    Args:
      p_i: [N, D] predictions from the first views.
      p_j: [N, D] predictions from the second views.
      z_i: [N, D] embeddings of the first views; no gradient flows into them.
      z_j: [N, D] embeddings of the second views; no gradient flows into them.

    Returns:
      The loss in [-1, 1], a scalar of float32 or float64.

    Raises:
      UserError: the shapes do not fit.
    """
    p_i, p_j, z_i, z_j = _siamese_inputs(p_i, p_j, z_i, z_j)
    return -jnp.mean(jnp.sum(p_i * z_j + p_j * z_i, axis=-1)) / 2


def graded_siamese_mse(
    p_i: jax.Array,
    p_j: jax.Array,
    z_i: jax.Array,
    z_j: jax.Array,
    psi_ij: jax.Array,
    psi_ji: jax.Array,
) -> jax.Array:
    """The siamese loss with graded similarity (thesis, eq. 8), mean of both directions.

    With psi = 1 this is `siamese_mse`.

    Args:
      p_i: [N, D] predictions from the first views.
      p_j: [N, D] predictions from the second views.
      z_i: [N, D] embeddings of the first views; no gradient flows into them.
      z_j: [N, D] embeddings of the second views; no gradient flows into them.
      psi_ij: [N] similarity in [0, 1] for the predictions from i.
      psi_ji: [N] similarity in [0, 1] for the predictions from j.

    Returns:
      The loss in [0, 4], a scalar of float32 or float64.

    Raises:
      UserError: the shapes do not fit.
    """
    _check_shapes(p_i, psi_ij=psi_ij, psi_ji=psi_ji)
    p_i, p_j, z_i, z_j = _siamese_inputs(p_i, p_j, z_i, z_j)
    distances = _graded_distance(p_i, z_j, psi_ij) + _graded_distance(p_j, z_i, psi_ji)
    return jnp.mean(distances) / 2


def _graded_distance(u: jax.Array, v: jax.Array, psi: jax.Array) -> jax.Array:
    """D_GS (thesis, eq. 7): [N, D] unit vectors, [N] psi -> [N]."""
    # From the difference: sqrt(2 - 2 cos) loses half the digits where the views are close.
    distance = _safe_norm(u - v)[:, 0]
    return jnp.square(distance - (1 - psi.astype(distance.dtype)))


def _log_denominators(
    z_i: jax.Array, z_j: jax.Array, temperature: float, axis_name: str | None
) -> jax.Array:
    """[N, D] unit vectors of both views -> [2N] logsumexp of the logits of all other views."""
    anchors = jnp.concatenate([z_i, z_j])
    num_anchors = anchors.shape[0]
    views, own = anchors, jnp.arange(num_anchors)
    if axis_name is not None:
        views = lax.all_gather(anchors, axis_name, tiled=True)
        own = own + num_anchors * lax.axis_index(axis_name)
    logits = jnp.matmul(anchors, views.T, precision=lax.Precision.HIGHEST) / temperature
    is_self = own[:, None] == jnp.arange(views.shape[0])[None, :]
    return jax.nn.logsumexp(jnp.where(is_self, -jnp.inf, logits), axis=-1)


def _siamese_inputs(p_i: jax.Array, p_j: jax.Array, z_i: jax.Array, z_j: jax.Array):
    _check_shapes(p_i, p_j, z_i, z_j)
    # The stop-gradient lives in the loss, so that no caller can forget it.
    z_i, z_j = lax.stop_gradient(z_i), lax.stop_gradient(z_j)
    return _normalise(p_i), _normalise(p_j), _normalise(z_i), _normalise(z_j)


def _normalise(z: jax.Array) -> jax.Array:
    """[N, D] -> [N, D] of length 1; a zero row stays zero, and its gradient is zero."""
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    norm = _safe_norm(z)
    return jnp.where(norm > 0, z, 0) / jnp.where(norm > 0, norm, 1)


def _safe_norm(x: jax.Array) -> jax.Array:
    """[N, D] -> [N, 1] L2 norms, whose gradient at 0 is 0 instead of NaN."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # Both branches of a where are differentiated: the root must not see the zero.
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _check_shapes(first: jax.Array, *others: jax.Array, **psi: jax.Array) -> None:
    if first.ndim != 2 or any(other.shape != first.shape for other in others):
        shapes = ", ".join(str(x.shape) for x in (first, *others))
        raise UserError(f"embeddings of shapes {shapes}: give arrays of one shape [N, D]")
    for name, values in psi.items():
        # [N, 1] would broadcast to [N, N] without a word.
        if values.shape != first.shape[:1]:
            raise UserError(f"{name} of shape {values.shape}: give one value per image, [N]")

"""The losses of SimCLR, MoCo, SimSiam and BYOL and their graded forms, as pure functions.

Embeddings come straight from the heads; they are normalized here, in at least float32. Each loss is
a scalar, the mean over positive pairs: an anchor and a target from different views of one image.

`contrastive` and `siamese` take any number of views: anchors [B, V, D], targets [B, W, D] and psi
[B, V, W], where target w is view w and psi[b, v, w] is the similarity of view v to view w
(`gsjax.similarity.pairwise`). `momentum_contrastive` takes pairs of them, one per row. The other
functions are the papers' equations for two views i and j:
row n of every argument belongs to image n, `psi_ij` [N] is the similarity of view i to view j, and
`psi_ji` that of j to i.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gsjax.errors import UserError


class Grading(NamedTuple):
    """How psi enters a loss. At psi = 1 all forms are the squared distance, d^2.

    Attributes:
      form: "regress" (thesis, eq. 7): the positive term is D_GS = (d - (1 - psi))^2. "margin"
        (Leyva-Vallina et al. 2023): it is psi d^2 + (1 - psi) max(margin - d, 0)^2. "weight": it is
        d^2, and the loss is the mean over pairs weighted by psi, 0 if no pair has any weight.
      margin: distance beyond which "margin" does not push views apart.
    """

    form: str = "regress"
    margin: float = math.sqrt(2)


REGRESS = Grading()
"""The thesis' form of grading."""


def contrastive(
    anchors: jax.Array,
    targets: jax.Array,
    psi: jax.Array | None,
    temperature: float,
    scale: float = 1.0,
    axis_name: str | None = None,
    grading: Grading = REGRESS,
) -> jax.Array:
    """NT-Xent for any number of views, graded if psi is given.

    A pair's loss is -cos / tau or, graded, scale / tau times the term that `grading` defines, plus
    the logsumexp of the anchor's logits over all targets in the batch except itself. Anchors that
    are not targets (local crops) are therefore never negatives.

    Args:
      anchors: [B, V, D] embeddings of all views.
      targets: [B, W, D] embeddings of the first W <= V views.
      psi: [B, V, W] similarity in [0, 1], or None.
      temperature: tau, positive.
      scale: weight of the graded positive term.
      axis_name: mapped axis over whose devices the targets are gathered; gradients flow through the
        gather. The anchors stay local: average losses and gradients over the axis.
      grading: the form of grading.

    Returns:
      The loss, a float32 or float64 scalar.

    Raises:
      UserError: the shapes do not match.
    """
    check_views(anchors, targets, psi)
    anchors, targets = normalize(anchors), normalize(targets)
    v, w = pairs(anchors.shape[1], targets.shape[1])
    of_pairs = None if psi is None else psi[:, v, w]
    positive = positive_term(anchors[:, v], targets[:, w], of_pairs, temperature, scale, grading)
    negative = _log_denominators(anchors, targets, temperature, axis_name)[:, v]
    mean = functools.partial(pair_mean, psi=of_pairs, grading=grading, axis_name=axis_name)
    return mean(positive) + mean(negative)


def momentum_contrastive(
    queries: jax.Array,
    keys: jax.Array,
    queue: jax.Array,
    psi: jax.Array | None,
    temperature: float,
    scale: float = 1.0,
    axis_name: str | None = None,
    grading: Grading = REGRESS,
) -> jax.Array:
    """InfoNCE against a queue of earlier keys (MoCo, eq. 1), graded if psi is given.

    A pair's loss is -cos / tau or, graded, scale / tau times the term that `grading` defines, plus
    the logsumexp of the query's logits over its key and the whole queue.

    Args:
      queries: [N, D] embeddings.
      keys: [N, D] embeddings of other views of the same images; no gradient flows into them.
      queue: [K, D] unit rows; no gradient flows into them.
      psi: [N] similarity in [0, 1] of the queries' views to the keys', or None.
      temperature: tau, positive.
      scale: weight of the graded positive term.
      axis_name: mapped axis whose devices share the weights of the form "weight".
      grading: the form of grading.

    Returns:
      The loss, a float32 or float64 scalar.

    Raises:
      UserError: the shapes do not match.
    """
    shapes = [queries.shape, keys.shape, queue.shape]
    if queries.ndim != 2 or keys.shape != queries.shape or queue.shape[1:] != queries.shape[1:]:
        raise UserError(f"embeddings of shapes {shapes}: give [N, D], [N, D] and [K, D]")
    if psi is not None and psi.shape != queries.shape[:1]:
        raise UserError(f"psi of shape {psi.shape}: give one value per query, [N]")
    queries, keys = normalize(queries), normalize(lax.stop_gradient(keys))
    queue = lax.stop_gradient(queue)
    positive = positive_term(queries, keys, psi, temperature, scale, grading)
    own = jnp.sum(queries * keys, axis=-1, keepdims=True)
    others = jnp.matmul(queries, queue.T, precision=lax.Precision.HIGHEST)
    logits = jnp.concatenate([own, others], axis=-1) / temperature
    mean = functools.partial(pair_mean, psi=psi, grading=grading, axis_name=axis_name)
    return mean(positive) + mean(jax.nn.logsumexp(logits, axis=-1))


def siamese(
    predictions: jax.Array,
    targets: jax.Array,
    psi: jax.Array | None,
    distance: str = "mse",
    axis_name: str | None = None,
    grading: Grading = REGRESS,
) -> jax.Array:
    """Distance between a prediction and another view's target, graded if psi is given.

    Args:
      predictions: [B, V, D] predictions from all views.
      targets: [B, W, D] embeddings of the first W <= V views; no gradient flows into them.
      psi: [B, V, W] similarity in [0, 1], or None.
      distance: "mse", the squared distance; "cosine", the negative cosine, which only the form
        "weight" can grade; or "sum", twice "mse": with two views the sum of both directions
        (DeepMind's BYOL).
      axis_name: mapped axis whose devices share the weights of the form "weight".
      grading: the form of grading.

    Returns:
      The loss, a float32 or float64 scalar: in [0, 4] for "mse", in [-1, 1] for "cosine".

    Raises:
      UserError: the shapes do not match, or psi cannot grade this distance.
    """
    check_views(predictions, targets, psi)
    # The stop-gradient is part of the loss, so no caller can forget it.
    predictions, targets = normalize(predictions), normalize(lax.stop_gradient(targets))
    v, w = pairs(predictions.shape[1], targets.shape[1])
    p, z = predictions[:, v], targets[:, w]
    of_pairs = None if psi is None else psi[:, v, w]
    if distance == "cosine":
        if psi is not None and grading.form != "weight":
            raise UserError(f"the form {grading.form} cannot grade a cosine: use mse, or weight")
        values = -jnp.sum(p * z, axis=-1)
    elif of_pairs is None:
        values = jnp.sum(jnp.square(p - z), axis=-1)
    else:
        values = _graded(p, z, of_pairs, grading)
    return (2 if distance == "sum" else 1) * pair_mean(values, of_pairs, grading, axis_name)


def pairs(num_views: int, num_targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns indices v and w, [P] each, of all pairs with v != w; target w is view w."""
    v, w = np.nonzero(~np.eye(num_views, num_targets, dtype=bool))
    return v, w


def normalize(z: jax.Array) -> jax.Array:
    """Scales vectors to unit length; a zero vector and its gradient stay zero.

    Args:
      z: [..., D] vectors.

    Returns:
      [..., D] in at least float32.
    """
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    norm = _safe_norm(z)
    return jnp.where(norm > 0, z, 0) / jnp.where(norm > 0, norm, 1)


def nt_xent(
    z_i: jax.Array, z_j: jax.Array, temperature: float, axis_name: str | None = None
) -> jax.Array:
    """NT-Xent (SimCLR, eq. 1 and Algorithm 1; thesis, eq. 9), mean over the 2N anchors.

    Args:
      z_i: [N, D] embeddings of the first views.
      z_j: [N, D] embeddings of the second views.
      temperature: tau, positive.
      axis_name: as in `contrastive`.

    Returns:
      The loss, a float32 or float64 scalar.

    Raises:
      UserError: the shapes do not match.
    """
    z = _two_views(z_i, z_j)
    return contrastive(z, z, None, temperature, axis_name=axis_name)


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

    Per anchor: scale / tau * D_GS plus NT-Xent's log-denominator, which includes the positive.
    With psi = 1 and scale 0.5 this equals `nt_xent` + 1 / tau.

    Args:
      z_i: [N, D] embeddings of the first views.
      z_j: [N, D] embeddings of the second views.
      psi_ij: [N] similarity in [0, 1] for anchors i.
      psi_ji: [N] similarity in [0, 1] for anchors j.
      temperature: tau, positive.
      scale: weight of the positive term; 1 is the equation as printed.
      axis_name: as in `contrastive`.

    Returns:
      The loss, a float32 or float64 scalar.

    Raises:
      UserError: the shapes do not match.
    """
    z, psi = _two_views(z_i, z_j), _two_ways(z_i, psi_ij, psi_ji)
    return contrastive(z, z, psi, temperature, scale, axis_name)


def siamese_mse(p_i: jax.Array, p_j: jax.Array, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
    """Squared distance of prediction to other view (thesis, eq. 3), mean of both directions.

    Args:
      p_i: [N, D] predictions from the first views.
      p_j: [N, D] predictions from the second views.
      z_i: [N, D] embeddings of the first views; no gradient flows into them.
      z_j: [N, D] embeddings of the second views; no gradient flows into them.

    Returns:
      The loss in [0, 4], a float32 or float64 scalar.

    Raises:
      UserError: the shapes do not match.
    """
    return siamese(_two_views(p_i, p_j), _two_views(z_i, z_j), None)


def siamese_cosine(p_i: jax.Array, p_j: jax.Array, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
    """Negative cosine of prediction to other view (SimSiam, eq. 2), mean of both directions.

    Equals `siamese_mse` / 2 - 1.

    Args:
      p_i: [N, D] predictions from the first views.
      p_j: [N, D] predictions from the second views.
      z_i: [N, D] embeddings of the first views; no gradient flows into them.
      z_j: [N, D] embeddings of the second views; no gradient flows into them.

    Returns:
      The loss in [-1, 1], a float32 or float64 scalar.

    Raises:
      UserError: the shapes do not match.
    """
    return siamese(_two_views(p_i, p_j), _two_views(z_i, z_j), None, "cosine")


def graded_siamese_mse(
    p_i: jax.Array,
    p_j: jax.Array,
    z_i: jax.Array,
    z_j: jax.Array,
    psi_ij: jax.Array,
    psi_ji: jax.Array,
) -> jax.Array:
    """The siamese loss with graded similarity (thesis, eq. 8), mean of both directions.

    With psi = 1 this equals `siamese_mse`.

    Args:
      p_i: [N, D] predictions from the first views.
      p_j: [N, D] predictions from the second views.
      z_i: [N, D] embeddings of the first views; no gradient flows into them.
      z_j: [N, D] embeddings of the second views; no gradient flows into them.
      psi_ij: [N] similarity in [0, 1] for predictions from i.
      psi_ji: [N] similarity in [0, 1] for predictions from j.

    Returns:
      The loss in [0, 4], a float32 or float64 scalar.

    Raises:
      UserError: the shapes do not match.
    """
    psi = _two_ways(p_i, psi_ij, psi_ji)
    return siamese(_two_views(p_i, p_j), _two_views(z_i, z_j), psi)


def _graded(u: jax.Array, v: jax.Array, psi: jax.Array, grading: Grading) -> jax.Array:
    """The graded squared distance: unit vectors [..., D], psi [...] -> [...]."""
    # From the difference, because sqrt(2 - 2 cos) loses half the digits for close views.
    distance = _safe_norm(u - v)[..., 0]
    psi = psi.astype(distance.dtype)
    match grading.form:
        case "regress":
            return jnp.square(distance - (1 - psi))
        case "weight":
            return jnp.square(distance)
        case "margin":
            apart = jnp.square(jnp.maximum(grading.margin - distance, 0))
            return psi * jnp.square(distance) + (1 - psi) * apart
    raise UserError(f"the form of grading is {grading.form}: choose regress, weight or margin")


def positive_term(
    u: jax.Array,
    v: jax.Array,
    psi: jax.Array | None,
    temperature: float,
    scale: float,
    grading: Grading,
) -> jax.Array:
    """Returns the positive term of a contrastive loss.

    Args:
      u: [..., D] unit vectors of the anchors.
      v: [..., D] unit vectors of their targets.
      psi: [...] similarity in [0, 1], or None for -cos / tau.
      temperature: tau, positive.
      scale: weight of the graded term.
      grading: the form of grading.

    Returns:
      [...], one per pair.
    """
    if psi is None:
        return -jnp.sum(u * v, axis=-1) / temperature
    return scale / temperature * _graded(u, v, psi, grading)


def pair_mean(
    values: jax.Array, psi: jax.Array | None, grading: Grading, axis_name: str | None
) -> jax.Array:
    """Returns the mean over pairs; under "weight" this device's share of the weighted one.

    Args:
      values: [...] losses of pairs.
      psi: [...] similarity in [0, 1], or None.
      grading: the form of grading.
      axis_name: mapped axis whose devices share the weights, or None.
    """
    if psi is None or grading.form != "weight":
        return jnp.mean(values)
    psi = psi.astype(values.dtype)
    total, devices = jnp.sum(psi), 1
    if axis_name is not None:
        total, devices = lax.psum((total, 1), axis_name)
    # Averaged over the devices, the shares are the sum over all pairs divided by all weights.
    return devices * jnp.sum(psi * values) / jnp.where(total > 0, total, 1)


def _log_denominators(
    anchors: jax.Array, targets: jax.Array, temperature: float, axis_name: str | None
) -> jax.Array:
    """Unit vectors [B, V, D], [B, W, D] -> [B, V] logsumexp of all logits but the anchor's own."""
    num_images, num_views, width = anchors.shape
    num_targets = targets.shape[1]
    image = jnp.arange(num_images)
    if axis_name is not None:
        targets = lax.all_gather(targets, axis_name, tiled=True)
        image = image + num_images * lax.axis_index(axis_name)
    rows, columns = anchors.reshape(-1, width), targets.reshape(-1, width)
    logits = jnp.matmul(rows, columns.T, precision=lax.Precision.HIGHEST) / temperature
    own = (image * num_targets)[:, None] + jnp.arange(num_views)[None]
    own = jnp.where(jnp.arange(num_views)[None] < num_targets, own, -1)  # -1: not a target
    is_self = own.reshape(-1, 1) == jnp.arange(len(columns))[None, :]
    masked = jnp.where(is_self, -jnp.inf, logits)
    return jax.nn.logsumexp(masked, axis=-1).reshape(num_images, num_views)


def _two_views(*views: jax.Array) -> jax.Array:
    """[N, D] twice -> [N, 2, D]."""
    first = views[0]
    if first.ndim != 2 or any(view.shape != first.shape for view in views):
        shapes = ", ".join(str(view.shape) for view in views)
        raise UserError(f"embeddings of shapes {shapes}: give equal shapes [N, D]")
    return jnp.stack(views, axis=1)


def _two_ways(z: jax.Array, psi_ij: jax.Array, psi_ji: jax.Array) -> jax.Array:
    """[N] twice -> [N, 2, 2]; the unused self-similarities are 1."""
    for name, psi in (("psi_ij", psi_ij), ("psi_ji", psi_ji)):
        # [N, 1] would silently broadcast to [N, N].
        if psi.shape != z.shape[:1]:
            raise UserError(f"{name} of shape {psi.shape}: give one value per image, [N]")
    one = jnp.ones_like(psi_ij)
    rows = [jnp.stack([one, psi_ij], axis=1), jnp.stack([psi_ji, one], axis=1)]
    return jnp.stack(rows, axis=1)


def _safe_norm(x: jax.Array) -> jax.Array:
    """[..., D] -> [..., 1] L2 norms, with gradient 0 instead of NaN at 0."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # Both branches of a `where` are differentiated, so sqrt must not see 0.
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def check_views(anchors: jax.Array, targets: jax.Array, psi: jax.Array | None) -> None:
    """Checks anchors [B, V, D], targets [B, W, D] with W <= V, and psi [B, V, W].

    Raises:
      UserError: the shapes do not match.
    """
    shapes = [anchors.shape, targets.shape]
    fits = anchors.ndim == targets.ndim == 3 and anchors.shape[::2] == targets.shape[::2]
    if not fits or not 1 <= targets.shape[1] <= anchors.shape[1] or anchors.shape[1] < 2:
        raise UserError(f"embeddings of shapes {shapes}: give [B, V, D] and [B, W, D], W <= V")
    wanted = (*anchors.shape[:2], targets.shape[1])
    if psi is not None and psi.shape != wanted:
        raise UserError(f"psi of shape {psi.shape}: give one value per pair, {wanted}")

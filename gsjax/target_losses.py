"""The losses of MoCo v3 and DINO: a target network's outputs are keys or teacher distributions.

Shapes are those of `gsjax.losses`: anchors [B, V, D], targets [B, W, D] and psi [B, V, W], where
target w is view w.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from gsjax.losses import REGRESS, Grading, check_views, normalize, pair_mean, pairs, positive_term


def in_batch_contrastive(
    queries: jax.Array,
    keys: jax.Array,
    psi: jax.Array | None,
    temperature: float,
    scale: float = 1.0,
    axis_name: str | None = None,
    grading: Grading = REGRESS,
) -> jax.Array:
    """InfoNCE against the keys of all images in the batch (MoCo v3, algorithm 1), graded with psi.

    The loss of a pair (v, w) is -cos / tau or, graded, scale / tau times the term that `grading`
    defines, plus the logsumexp of the query's logits over the keys of view w of all images. The
    result is 4 tau times the mean over pairs: with two views 2 tau (CE(q_1, k_2) + CE(q_2, k_1)).

    Args:
      queries: [B, V, D] predictions from all views.
      keys: [B, W, D] embeddings of the first W <= V views; no gradient flows into them.
      psi: [B, V, W] similarity in [0, 1], or None.
      temperature: tau, positive.
      scale: weight of the graded positive term.
      axis_name: mapped axis over whose devices the keys are gathered, or None.
      grading: the form of grading.

    Returns:
      The loss, a float32 or float64 scalar.

    Raises:
      UserError: the shapes do not match.
    """
    check_views(queries, keys, psi)
    queries, keys = normalize(queries), normalize(lax.stop_gradient(keys))
    v, w = pairs(queries.shape[1], keys.shape[1])
    of_pairs = None if psi is None else psi[:, v, w]
    positive = positive_term(queries[:, v], keys[:, w], of_pairs, temperature, scale, grading)
    every = keys if axis_name is None else lax.all_gather(keys, axis_name, tiled=True)
    logits = jnp.einsum("bvd,nwd->bvwn", queries, every, precision=lax.Precision.HIGHEST)
    negative = jax.nn.logsumexp(logits / temperature, axis=-1)[:, v, w]
    mean = functools.partial(pair_mean, psi=of_pairs, grading=grading, axis_name=axis_name)
    return 4 * temperature * (mean(positive) + mean(negative))


def distillation(
    student: jax.Array,
    teacher: jax.Array,
    psi: jax.Array | None,
    temperature: float,
    axis_name: str | None = None,
) -> jax.Array:
    """Cross-entropy of student to teacher distributions, mean over pairs (DINO, eq. 1 to 3).

    There is no distance to grade: psi weights the pairs.

    Args:
      student: [B, V, K] scores of the prototypes from all views.
      teacher: [B, W, K] probabilities from the first W <= V views; no gradient flows into them.
      psi: [B, V, W] similarity in [0, 1], or None.
      temperature: of the student's softmax, positive.
      axis_name: mapped axis whose devices share the weights, or None.

    Returns:
      The loss, a float32 or float64 scalar.

    Raises:
      UserError: the shapes do not match.
    """
    check_views(student, teacher, psi)
    logits, teacher = student / temperature, lax.stop_gradient(teacher)
    # The probabilities of a teacher add up to 1.
    expected = jnp.einsum("bvk,bwk->bvw", logits, teacher, precision=lax.Precision.HIGHEST)
    values = jax.nn.logsumexp(logits, axis=-1)[..., None] - expected
    v, w = pairs(student.shape[1], teacher.shape[1])
    of_pairs = None if psi is None else psi[:, v, w]
    return pair_mean(values[:, v, w], of_pairs, Grading("weight"), axis_name)


def teacher_probabilities(
    scores: jax.Array, center: jax.Array, temperature: jax.Array
) -> jax.Array:
    """Returns centered and sharpened distributions (DINO, section 3.1).

    Args:
      scores: [..., K] scores of the prototypes.
      center: [K], subtracted from them.
      temperature: [] of the softmax.
    """
    centered = scores - jnp.broadcast_to(center, scores.shape)
    return jax.nn.softmax(centered / temperature, axis=-1)

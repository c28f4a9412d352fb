"""The losses of MoCo v3 and DINO against loops written from the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsjax import target_losses
from gsjax.errors import UserError
from gsjax.losses import Grading

B, V, W, D = 5, 4, 2, 6
FORMS = [None, "regress", "weight", "margin"]


def example(last=D):
    generator = np.random.default_rng(0)
    anchors, targets = generator.normal(size=(B, V, last)), generator.normal(size=(B, W, last))
    return anchors, targets, generator.uniform(size=(B, V, W))


def unit(x):
    return x / np.linalg.norm(x)


def slow_term(q, k, psi, temperature, scale, form):
    """The positive term of a pair."""
    if form is None:
        return -q @ k / temperature
    d = np.linalg.norm(q - k)
    term = {
        "regress": (d - (1 - psi)) ** 2,
        "weight": d**2,
        "margin": psi * d**2 + (1 - psi) * max(2**0.5 - d, 0) ** 2,
    }[form]
    return scale / temperature * term


def slow_mean(pairs, form):
    """The mean of (loss, psi) over pairs, weighted under "weight"."""
    values, psi = np.transpose(pairs)
    return np.sum(psi * values) / np.sum(psi) if form == "weight" else np.mean(values)


@pytest.mark.parametrize("form", FORMS)
def test_in_batch_contrastive(form, x64):
    queries, keys, psi = example()
    temperature, scale = 0.3, 0.7
    loss = functools.partial(
        target_losses.in_batch_contrastive,
        temperature=temperature,
        scale=scale,
        grading=Grading(form or "regress"),
    )
    found = jax.jit(loss)(
        *map(jnp.asarray, (queries, keys)), None if form is None else jnp.asarray(psi)
    )
    pairs = []
    for b in range(B):
        for v in range(V):
            for w in range(W):
                if v == w:
                    continue
                q, k = unit(queries[b, v]), unit(keys[b, w])
                everyone = [np.exp(q @ unit(keys[n, w]) / temperature) for n in range(B)]
                term = slow_term(q, k, psi[b, v, w], temperature, scale, form)
                pairs.append((term + np.log(np.sum(everyone)), psi[b, v, w]))
    assert found == pytest.approx(4 * temperature * slow_mean(pairs, form), rel=1e-12)


def test_two_views_are_algorithm_1_of_moco_v3(x64):
    """Written as there: loss = ctr(q1, k2) + ctr(q2, k1), ctr = 2 tau CE(q k^T / tau)."""
    queries, keys, _ = example()
    queries, temperature = queries[:, :2], 0.2

    def ctr(q, k):
        q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
        logits = q @ k.T / temperature
        log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -2 * temperature * np.mean(np.diag(log_softmax))

    expected = ctr(queries[:, 0], keys[:, 1]) + ctr(queries[:, 1], keys[:, 0])
    found = target_losses.in_batch_contrastive(
        jnp.asarray(queries), jnp.asarray(keys), None, temperature
    )
    assert found == pytest.approx(expected, rel=1e-12)


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


@pytest.mark.parametrize("graded", [False, True])
def test_distillation(graded, x64):
    """As the pseudocode of DINO's algorithm 1, over all views."""
    student, teacher, psi = example(last=9)
    center, first, second = np.linspace(-1, 1, 9), 0.3, 0.2
    probabilities = target_losses.teacher_probabilities(
        jnp.asarray(teacher), jnp.asarray(center), jnp.asarray(second)
    )
    found = target_losses.distillation(
        jnp.asarray(student), probabilities, jnp.asarray(psi) if graded else None, first
    )
    pairs = []
    for b in range(B):
        for w in range(W):
            t = softmax((teacher[b, w] - center) / second)
            np.testing.assert_allclose(probabilities[b, w], t, rtol=1e-12)
            for v in range(V):
                if v != w:
                    s = softmax(student[b, v] / first)
                    pairs.append((-np.sum(t * np.log(s)), psi[b, v, w]))
    expected = slow_mean(pairs, "weight" if graded else None)
    assert found == pytest.approx(expected, rel=1e-12)


def test_no_gradient_flows_into_targets(x64):
    anchors, targets, psi = map(jnp.asarray, example())
    losses = [
        lambda a, t: target_losses.in_batch_contrastive(a, t, psi, 0.2),
        lambda a, t: target_losses.distillation(a, jax.nn.softmax(t), psi, 0.1),
    ]
    for loss in losses:
        to_anchors, to_targets = jax.jit(jax.grad(loss, (0, 1)))(anchors, targets)
        assert np.abs(to_anchors).max() > 1e-3 and not np.any(to_targets)


def test_shapes_that_do_not_fit():
    anchors, targets, psi = map(jnp.asarray, example())
    with pytest.raises(UserError, match=r"give \[B, V, D\] and \[B, W, D\]"):
        target_losses.in_batch_contrastive(anchors, targets[:, :, :2], None, 0.2)
    with pytest.raises(UserError, match="one value per pair"):
        target_losses.distillation(anchors, targets, psi[:, :, :1], 0.2)

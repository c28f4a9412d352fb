"""The forms of grading, against loops over pairs; multi-crop's anchors that are no targets."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gsjax import losses
from gsjax.errors import UserError
from gsjax.runtime import parallel

NUM, VIEWS, TARGETS, DIM, TAU, SCALE = 4, 5, 2, 6, 0.3, 0.7
FORMS = ("regress", "weight", "margin")
LOSSES = ("contrastive", "momentum_contrastive", "siamese")
MARGIN = 1.1


@pytest.fixture(autouse=True)
def _x64(x64):
    """In float64."""


def unit(vector):
    return vector / math.sqrt(sum(vector**2))


def views(seed=0):
    """Anchors, targets and psi; the targets are the first anchors, as for SimCLR."""
    generator = np.random.default_rng(seed)
    anchors = generator.normal(size=(NUM, VIEWS, DIM))
    psi = generator.uniform(size=(NUM, VIEWS, TARGETS)) * (
        generator.uniform(size=(NUM, 1, 1)) > 0.3
    )
    return anchors, anchors[:, :TARGETS].copy(), psi


def positive(u, v, psi, form):
    """The term of a pair of vectors."""
    d = math.sqrt(sum((unit(u) - unit(v)) ** 2))
    if form == "regress":
        return (d - (1 - psi)) ** 2
    if form == "weight":
        return d**2
    return psi * d**2 + (1 - psi) * max(MARGIN - d, 0) ** 2


def slow(name, anchors, targets, psi, form, queue):
    """The loss as a loop over images, anchors and targets."""
    terms, weights = [], []
    for n in range(len(anchors)):
        for v in range(VIEWS):
            for w in range(TARGETS):
                if v == w:
                    continue
                u, t = anchors[n, v], targets[n, w]
                term = positive(u, t, psi[n, v, w], form)
                if name == "contrastive":
                    others = [
                        targets[m, k]
                        for m in range(len(anchors))
                        for k in range(TARGETS)
                        if (m, k) != (n, v)
                    ]
                elif name == "momentum_contrastive":
                    others = [t, *queue]
                if name != "siamese":
                    logits = [unit(u) @ unit(other) / TAU for other in others]
                    term = SCALE / TAU * term + math.log(sum(map(math.exp, logits)))
                terms.append(term)
                weights.append(psi[n, v, w] if form == "weight" else 1.0)
    total = sum(weights)
    return sum(w * t for w, t in zip(weights, terms, strict=True)) / total if total else 0.0


def fast(name, anchors, targets, psi, form, queue, axis_name=None):
    """The same with gsjax."""
    about = {"axis_name": axis_name, "grading": losses.Grading(form, MARGIN)}
    if name == "contrastive":
        return losses.contrastive(anchors, targets, psi, TAU, SCALE, **about)
    if name == "siamese":
        return losses.siamese(anchors, targets, psi, **about)
    v, w = losses.pairs(VIEWS, TARGETS)
    rows = [x.reshape(-1, *x.shape[2:]) for x in (anchors[:, v], targets[:, w], psi[:, v, w])]
    return losses.momentum_contrastive(rows[0], rows[1], queue, rows[2], TAU, SCALE, **about)


compiled = jax.jit(fast, static_argnums=(0, 4))


@functools.cache
def queue():
    rows = np.random.default_rng(7).normal(size=(9, DIM))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_form_equals_the_loop(name, form):
    inputs = views()
    result = compiled(name, *map(jnp.asarray, inputs), form, jnp.asarray(queue()))
    np.testing.assert_allclose(result, slow(name, *inputs, form, queue()), rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LOSSES)
def test_devices_share_one_loss_and_its_gradient(name, form):
    """Some devices hold only pairs without weight."""
    inputs = [jnp.asarray(x) for x in views()]
    mesh = parallel.create_mesh(NUM, jax.devices()[:4])

    def on_device(anchors, targets, psi):
        def loss(a, t):
            return fast(name, a, t, psi, form, jnp.asarray(queue()), parallel.AXIS)

        value, grads = jax.value_and_grad(loss, (0, 1))(anchors, targets)
        return jax.lax.pmean(value, parallel.AXIS), [g / 4 for g in grads]

    batch = P(parallel.AXIS)
    value, grads = parallel.data_parallel(
        on_device, mesh, in_specs=(batch,) * 3, out_specs=(P(), batch)
    )(*inputs)

    def whole(a, t):
        return fast(name, a, t, inputs[2], form, jnp.asarray(queue()))

    expected, expected_grads = jax.jit(jax.value_and_grad(whole, (0, 1)))(*inputs[:2])
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LOSSES)
def test_at_psi_1_every_form_is_the_squared_distance(name, form):
    anchors, targets, psi = views()
    inputs = anchors, targets, np.ones_like(psi)
    result = compiled(name, *map(jnp.asarray, inputs), form, jnp.asarray(queue()))
    np.testing.assert_allclose(result, slow(name, *inputs, "weight", queue()), rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_without_any_weight_loss_and_gradient_are_0(name):
    anchors, targets, psi = (jnp.asarray(x) for x in views())

    def loss(anchors):
        return fast(name, anchors, targets, 0 * psi, "weight", jnp.asarray(queue()))

    value, gradient = jax.jit(jax.value_and_grad(loss))(anchors)
    assert value == 0 and not np.any(gradient)


def test_a_cosine_can_only_be_weighted():
    anchors, targets, psi = (jnp.asarray(x) for x in views())
    weighted = losses.siamese(anchors, targets, psi, "cosine", grading=losses.Grading("weight"))
    whole = losses.siamese(anchors, targets, psi, grading=losses.Grading("weight"))
    np.testing.assert_allclose(weighted, whole / 2 - 1, rtol=1e-12)
    for form in ("regress", "margin"):
        with pytest.raises(UserError, match="cannot grade a cosine"):
            losses.siamese(anchors, targets, psi, "cosine", grading=losses.Grading(form))
    with pytest.raises(UserError, match="choose regress, weight or margin"):
        losses.siamese(anchors, targets, psi, grading=losses.Grading("other"))


def test_close_views_have_a_finite_gradient():
    """The distance itself has none at 0."""
    anchors, _, psi = (jnp.asarray(x) for x in views())
    same = jnp.broadcast_to(anchors[:, :1], anchors.shape)
    for form in FORMS:
        loss = functools.partial(losses.siamese, grading=losses.Grading(form))
        gradient = jax.jit(jax.grad(loss))(same, same[:, :TARGETS], psi)
        assert np.isfinite(gradient).all()

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gsjax import losses
from gsjax.errors import UserError

NUM, DIM, TAU = 6, 5, 0.3


def arrays(*shapes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape) for shape in shapes]


def compiled(loss, *inputs, **constants):
    """What it returns, without a program for each of its operations."""
    return jax.jit(functools.partial(loss, **constants))(*inputs)


def embeddings(count, seed=0):
    return arrays(*[(NUM, DIM)] * count, seed=seed)


def similarities(seed=1):
    return list(np.random.default_rng(seed).uniform(size=(2, NUM)))


def unit(vector):
    return vector / np.sqrt(np.sum(vector**2))


def slow_distance(u, v, psi):
    """Eq. 7 of the thesis."""
    return (np.sqrt(np.sum((unit(u) - unit(v)) ** 2)) - (1 - psi)) ** 2


def slow_nt_xent(z_i, z_j, tau, psi=None, scale=1.0):
    """Eq. 9, or eq. 10 given psi = (psi_ij, psi_ji): a loop over anchors and their others."""
    views = [unit(z) for z in z_i] + [unit(z) for z in z_j]
    num, total = len(z_i), 0.0
    for anchor in range(2 * num):
        other = (anchor + num) % (2 * num)
        denominator = sum(
            np.exp(views[anchor] @ views[k] / tau) for k in range(2 * num) if k != anchor
        )
        if psi is None:
            total += -np.log(np.exp(views[anchor] @ views[other] / tau) / denominator)
        else:
            own_psi = psi[anchor // num][anchor % num]
            distance = slow_distance(views[anchor], views[other], own_psi)
            total += scale * distance / tau + np.log(denominator)
    return total / (2 * num)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_the_loop_and_optax(temperature):
    z_i, z_j = embeddings(2)
    expected = slow_nt_xent(z_i, z_j, temperature)
    with jax.enable_x64(True):
        result = compiled(losses.nt_xent, jnp.array(z_i), jnp.array(z_j), temperature=temperature)
        np.testing.assert_allclose(result, expected, rtol=1e-12)
        both, labels = np.concatenate([z_i, z_j]), np.tile(np.arange(NUM), 2)
        terms = compiled(optax.losses.ntxent, both, labels, temperature=temperature)
        peer = np.mean(terms)
        np.testing.assert_allclose(result, peer, rtol=1e-6)
    inputs = np.float32(z_i), np.float32(z_j)
    result = compiled(losses.nt_xent, *inputs, temperature=temperature)
    assert result.dtype == jnp.float32 and result.shape == ()
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_graded_nt_xent_equals_the_loop(scale):
    z_i, z_j = embeddings(2)
    psi = similarities()
    expected = slow_nt_xent(z_i, z_j, TAU, psi, scale)
    with jax.enable_x64(True):
        inputs = [jnp.array(x) for x in (z_i, z_j, *psi)]
        result = compiled(losses.graded_nt_xent, *inputs, temperature=TAU, scale=scale)
        np.testing.assert_allclose(result, expected, rtol=1e-12)
        default = compiled(losses.graded_nt_xent, *inputs, temperature=TAU)
        np.testing.assert_allclose(default, slow_nt_xent(z_i, z_j, TAU, psi), rtol=1e-12)


def test_graded_nt_xent_at_psi_one_and_half_scale_is_nt_xent_plus_a_constant():
    z_i, z_j = (jnp.float32(z) for z in embeddings(2))
    ones = jnp.ones(NUM)

    def graded(z_i, z_j):
        return losses.graded_nt_xent(z_i, z_j, ones, ones, TAU, scale=0.5)

    def plain(z_i, z_j):
        return losses.nt_xent(z_i, z_j, TAU) + 1 / TAU

    got, expected = (
        compiled(jax.value_and_grad(loss, (0, 1)), z_i, z_j) for loss in (graded, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)


def test_siamese_losses_equal_the_loops():
    p_i, p_j, z_i, z_j = embeddings(4)
    psi_ij, psi_ji = similarities()
    mse, cosine, graded = [], [], []
    for n in range(NUM):
        mse.append(slow_distance(p_i[n], z_j[n], 1) / 2 + slow_distance(p_j[n], z_i[n], 1) / 2)
        cosine.append(-unit(p_i[n]) @ unit(z_j[n]) / 2 - unit(p_j[n]) @ unit(z_i[n]) / 2)
        graded.append(
            slow_distance(p_i[n], z_j[n], psi_ij[n]) / 2
            + slow_distance(p_j[n], z_i[n], psi_ji[n]) / 2
        )
    with jax.enable_x64(True):
        four = [jnp.array(x) for x in (p_i, p_j, z_i, z_j)]
        psi = jnp.array(psi_ij), jnp.array(psi_ji)
        result = compiled(losses.siamese_mse, *four)
        np.testing.assert_allclose(result, np.mean(mse), rtol=1e-12)
        result = compiled(losses.siamese_cosine, *four)
        np.testing.assert_allclose(result, np.mean(cosine), rtol=1e-12)
        result = compiled(losses.graded_siamese_mse, *four, *psi)
        np.testing.assert_allclose(result, np.mean(graded), rtol=1e-12)


def test_graded_siamese_at_psi_one_is_siamese_mse():
    four = [jnp.float32(x) for x in embeddings(4)]
    ones = jnp.ones(NUM)
    plain, plain_grad = compiled(jax.value_and_grad(losses.siamese_mse), *four)
    loss = jax.value_and_grad(losses.graded_siamese_mse)
    graded, graded_grad = compiled(loss, *four, ones, ones)
    np.testing.assert_allclose(graded, plain, rtol=1e-6)
    np.testing.assert_allclose(graded_grad, plain_grad, atol=1e-7)


def test_gradient_of_the_graded_siamese_loss_is_the_one_of_appendix_c():
    p_i, p_j, z_i, z_j = embeddings(4)
    psi_ij, psi_ji = similarities()
    expected = np.zeros_like(p_i)
    for n in range(NUM):
        u, v, norm = unit(p_i[n]), unit(z_j[n]), np.sqrt(np.sum(p_i[n] ** 2))
        distance = np.sqrt(np.sum((u - v) ** 2))
        by_unit = 2 * (distance - (1 - psi_ij[n])) * (u - v) / distance
        # The chain rule through the normalization, which the appendix leaves out.
        expected[n] = (by_unit - u * (u @ by_unit)) / norm / (2 * NUM)
    with jax.enable_x64(True):
        inputs = [jnp.array(x) for x in (p_i, p_j, z_i, z_j, psi_ij, psi_ji)]
        result = compiled(jax.grad(losses.graded_siamese_mse), *inputs)
        np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "loss", [losses.siamese_mse, losses.siamese_cosine, losses.graded_siamese_mse]
)
def test_no_gradient_reaches_the_targets(loss):
    inputs = [jnp.float32(x) for x in embeddings(4)]
    if loss is losses.graded_siamese_mse:
        inputs += [jnp.float32(x) for x in similarities()]
    by_p_i, by_p_j, by_z_i, by_z_j = compiled(jax.grad(loss, (0, 1, 2, 3)), *inputs)
    assert jnp.all(by_z_i == 0) and jnp.all(by_z_j == 0)
    assert jnp.any(by_p_i != 0) and jnp.any(by_p_j != 0)


def test_psi_belongs_to_its_direction():
    # The gradient of the first view alone hears psi_ij and not psi_ji.
    four = [jnp.float32(x) for x in embeddings(4)]
    low, high = jnp.full(NUM, 0.1), jnp.full(NUM, 0.9)
    by_p_i = jax.jit(jax.grad(losses.graded_siamese_mse))
    np.testing.assert_array_equal(by_p_i(*four, low, low), by_p_i(*four, low, high))
    assert jnp.max(jnp.abs(by_p_i(*four, low, low) - by_p_i(*four, high, low))) > 1e-3
    z_i, z_j = four[:2]
    psi_ij, psi_ji = (jnp.float32(x) for x in similarities())
    mixed = losses.graded_nt_xent(z_i, z_j, psi_ij, psi_ji, TAU)
    # Swapping views and similarities together changes nothing; for one half only, it does.
    swapped = losses.graded_nt_xent(z_j, z_i, psi_ji, psi_ij, TAU)
    np.testing.assert_allclose(mixed, swapped, rtol=1e-6)
    doubled = losses.graded_nt_xent(z_i, z_j, psi_ij, psi_ij, TAU)
    assert abs(mixed - doubled) > 1e-3


@pytest.mark.parametrize("psi", [0.0, 0.4, 1.0])
def test_gradients_are_finite_at_equal_and_at_zero_embeddings(psi):
    z = jnp.float32(embeddings(1)[0])
    psi = jnp.full(NUM, psi)
    siamese = jax.jit(jax.grad(losses.graded_siamese_mse))
    contrastive = jax.jit(jax.grad(losses.graded_nt_xent), static_argnums=4)
    np.testing.assert_array_equal(siamese(z, z, z, z, psi, psi), np.zeros_like(z))
    assert np.isfinite(contrastive(z, z, psi, psi, TAU)).all()
    dead = z.at[2].set(0)
    others = [jnp.float32(x) for x in embeddings(3, seed=4)]
    for gradient in (
        siamese(dead, *others, psi, psi),
        compiled(jax.grad(losses.siamese_mse), dead, *others),
        compiled(jax.grad(losses.siamese_cosine), dead, *others),
        compiled(jax.grad(losses.nt_xent), dead, others[0], temperature=TAU),
        contrastive(dead, others[0], psi, psi, TAU),
    ):
        gradient = np.asarray(gradient)
        assert np.isfinite(gradient).all()
        assert np.all(gradient[2] == 0) and np.any(gradient != 0)


def test_small_distances_are_accurate_in_float32():
    p, step = embeddings(2)
    z = p + 1e-3 * step
    p, z = np.float32(p), np.float32(z)
    expected = np.mean([slow_distance(np.float64(p[n]), np.float64(z[n]), 1) for n in range(NUM)])
    ones = jnp.ones(NUM)
    np.testing.assert_allclose(losses.siamese_mse(p, z, p, z), expected, rtol=1e-3)
    graded = losses.graded_siamese_mse(p, z, p, z, ones, ones)
    np.testing.assert_allclose(graded, expected, rtol=1e-3)


def test_bfloat16_embeddings_are_computed_in_float32():
    z_i, z_j = (jnp.array(z, jnp.bfloat16) for z in embeddings(2))
    result = losses.nt_xent(z_i, z_j, TAU)
    assert result.dtype == jnp.float32
    expected = losses.nt_xent(z_i.astype(jnp.float32), z_j.astype(jnp.float32), TAU)
    assert result == expected


@pytest.mark.parametrize("graded", [False, True])
def test_four_devices_equal_one(graded):
    assert jax.device_count() >= 4, "XLA_FLAGS=--xla_force_host_platform_device_count=4 is missing"
    num = 8
    x_i, x_j, weights = arrays((num, 7), (num, 7), (7, DIM))
    psi = np.random.default_rng(1).uniform(size=(2, num))
    mesh = jax.make_mesh((4,), ("batch",), (AxisType.Auto,), devices=jax.devices()[:4])

    def loss(weights, x_i, x_j, psi_ij, psi_ji, axis_name=None):
        z_i, z_j = x_i @ weights, x_j @ weights
        if graded:
            return losses.graded_nt_xent(z_i, z_j, psi_ij, psi_ji, TAU, axis_name=axis_name)
        return losses.nt_xent(z_i, z_j, TAU, axis_name)

    def step(*inputs):
        return jax.lax.pmean(jax.value_and_grad(loss)(*inputs, "batch"), "batch")

    specs = (P(), *[P("batch")] * 4)
    sharded = jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    )
    with jax.enable_x64(True):
        inputs = [jnp.array(x) for x in (weights, x_i, x_j, *psi)]
        value, gradient = sharded(*inputs)
        expected_value, expected_gradient = compiled(jax.value_and_grad(loss), *inputs)
        np.testing.assert_allclose(value, expected_value, rtol=1e-12)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def dot_precisions(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", None)
            if inner is not None:
                yield from dot_precisions(inner)


def test_logits_have_the_highest_precision():
    highest = (jax.lax.Precision.HIGHEST,) * 2
    z_i, z_j = (jnp.float32(z) for z in embeddings(2))
    psi = jnp.ones(NUM)
    for loss in (
        lambda z: losses.nt_xent(z, z_j, TAU),
        lambda z: losses.graded_nt_xent(z, z_j, psi, psi, TAU),
    ):
        found = list(dot_precisions(jax.make_jaxpr(jax.value_and_grad(loss))(z_i).jaxpr))
        assert len(found) >= 2 and all(precision == highest for precision in found)


def test_mistakes_are_told():
    z_i, z_j = (jnp.float32(z) for z in embeddings(2))
    psi = jnp.ones(NUM)
    with pytest.raises(UserError, match=r"\(6, 5\), \(5, 5\)"):
        losses.nt_xent(z_i, z_j[1:], TAU)
    with pytest.raises(UserError, match=r"psi_ji of shape \(6, 1\)"):
        losses.graded_nt_xent(z_i, z_j, psi, psi[:, None], TAU)
    with pytest.raises(UserError, match="psi_ij"):
        losses.graded_siamese_mse(z_i, z_j, z_i, z_j, psi[1:], psi)


@pytest.mark.parametrize("psi", [None, similarities()[0]], ids=["plain", "graded"])
def test_momentum_contrastive_equals_the_loop(psi):
    queries, keys = embeddings(2)
    queue = [unit(row) for row in arrays((8, DIM), seed=2)[0]]
    scale, total = 0.7, 0.0
    for n in range(NUM):
        q, k = unit(queries[n]), unit(keys[n])
        logarithm = np.log(sum(np.exp(q @ row / TAU) for row in [k, *queue]))
        if psi is None:
            total += -q @ k / TAU + logarithm
        else:
            total += scale / TAU * slow_distance(q, k, psi[n]) + logarithm
    with jax.enable_x64(True):
        given = None if psi is None else jnp.array(psi)
        inputs = [jnp.array(x) for x in (queries, keys, queue)]
        loss = jax.value_and_grad(losses.momentum_contrastive, (0, 1, 2))
        result, grads = compiled(loss, *inputs, given, temperature=TAU, scale=scale)
        np.testing.assert_allclose(result, total / NUM, rtol=1e-12)
        assert np.abs(grads[0]).max() > 0.01
        assert not np.any(grads[1]) and not np.any(grads[2])


def test_momentum_contrastive_refuses_shapes_that_do_not_match():
    queries, keys = (jnp.float32(z) for z in embeddings(2))
    for wrong in (
        (queries, keys[1:], queries, None), (queries, keys, queries[:, 1:], None),
        (queries, keys, queries, jnp.ones((NUM, 1))),
    ):  # fmt: skip
        with pytest.raises(UserError, match="shape"):
            losses.momentum_contrastive(*wrong, TAU)


def test_the_sum_of_both_directions_is_twice_their_mean():
    p_i, p_j, z_i, z_j = (jnp.float32(z) for z in embeddings(4))
    predictions, targets = jnp.stack([p_i, p_j], 1), jnp.stack([z_i, z_j], 1)
    for psi in (None, jnp.full((NUM, 2, 2), 0.3)):
        mean = compiled(losses.siamese, predictions, targets, psi)
        whole = jax.jit(losses.siamese, static_argnums=3)(predictions, targets, psi, "sum")
        np.testing.assert_allclose(whole, 2 * mean)

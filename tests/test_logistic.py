"""Logistic regression against scikit-learn run to convergence, on real features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from gsjax.errors import UserError
from gsjax.evaluate import logistic, logistic_solver

# The values of the grid nearest to 1e-2, 1, 1e2 and 1e4.
L2 = logistic.GRID[[16, 24, 32, 40]]
SOME = logistic.GRID[[20, 28, 36]]


@pytest.fixture(scope="module", autouse=True)
def _one_blas_thread():
    # On a busy machine threads that wait for each other take twenty times as long.
    with threadpool_limits(1, user_api="blas"):
        yield


@functools.cache
def digits(kind="pixels"):
    """Pictures of digits: [N, D] features and [N] labels, and 300 more for validation."""
    pixels, labels = load_digits(return_X_y=True)
    features = pixels / 16
    if kind == "correlated":  # wide, positive, correlated, as a ReLU gives them
        generator = np.random.default_rng(0)
        features = np.maximum(pixels @ generator.normal(size=(64, 150)) / 64 + 0.5, 0)
    num = 100 if kind == "wide" else 400
    if kind == "wide":  # fewer examples than features
        features = np.concatenate([features, np.sqrt(features), features**2], axis=1)
    features = features.astype(np.float32)
    return features[:num], labels[:num], features[-300:], labels[-300:]


def oracle(features, labels, l2):
    model = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=20000)
    return model.fit(features.astype(np.float64), labels)


def cross_entropies(logits, labels):
    top = logits.max(axis=1, keepdims=True)
    logsumexp = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return np.sum(logsumexp - logits[np.arange(len(labels)), labels])


def objective(features, labels, weights, biases, l2):
    """Literally, in float64: [N, D], [N], [D, C], [C]."""
    weights = np.float64(weights)
    logits = np.float64(features) @ weights + np.float64(biases)
    return cross_entropies(logits, labels) + l2 / 2 * np.sum(weights**2)


def optima(features, labels, l2):
    models = [oracle(features, labels, value) for value in l2]
    return np.array(
        [
            objective(features, labels, model.coef_.T, model.intercept_, value)
            for model, value in zip(models, l2, strict=True)
        ]
    )


def reached(features, labels, fit, l2):
    return np.array(
        [
            objective(features, labels, *classifier)
            for classifier in zip(fit.weights, fit.biases, l2, strict=True)
        ]
    )


@pytest.mark.parametrize("kind", ["pixels", "correlated", "wide"])
def test_objectives_equal_scikit_learns(kind):
    features, labels, _, _ = digits(kind)
    fit = logistic.fit(features, labels, 10, L2)
    assert fit.converged.all()
    assert fit.weights.shape == (4, features.shape[1], 10) and fit.weights.dtype == np.float32
    found, expected = reached(features, labels, fit, L2), optima(features, labels, L2)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(fit.objective, found, rtol=2e-5)


def test_whole_grid_has_converged_where_it_says_so():
    features, labels, queries, answers = digits("correlated")
    fit = logistic.fit(features, labels, 10)
    with jax.enable_x64(True):
        precise = logistic.fit(
            np.float64(features), labels, 10, tolerance=1e-11, max_iterations=500
        )
    assert precise.weights.dtype == np.float64 and precise.converged.all()
    # 208 when this was written; 1,033 without the lines through two solutions.
    assert fit.iterations.sum() < 300
    told = fit.converged & (logistic.GRID >= 0.009)
    assert told.sum() >= 25
    found = reached(features, labels, fit, logistic.GRID)
    np.testing.assert_allclose(found[told], precise.objective[told], rtol=1e-5)
    # At the smallest l2, scikit-learn's accuracy.
    expected = oracle(features, labels, logistic.GRID[0]).score(queries, answers)
    logits = logistic.logits(queries, fit.weights[0], fit.biases[0])
    assert abs(np.mean(logits.argmax(axis=1) == answers) - expected) <= 0.002 + 1e-9


def test_a_small_l2_converges_from_zero():
    # In 99 iterations; not in 200 if the scale stays what it is at zero.
    features, labels, _, _ = digits("correlated")
    fit = logistic.fit(features, labels, 10, logistic.GRID[8:9])
    assert fit.converged.all() and fit.iterations[0] < 150


def test_float64_is_scikit_learns_to_nine_digits():
    features, labels, _, _ = digits()
    with jax.enable_x64(True):
        fit = logistic.fit(np.float64(features), labels, 10, SOME, tolerance=1e-12)
    assert fit.weights.dtype == np.float64
    np.testing.assert_allclose(fit.objective, optima(features, labels, SOME), rtol=1e-9)


def test_too_few_iterations_are_told():
    features, labels, _, _ = digits()
    fit = logistic.fit(features, labels, 10, logistic.GRID[[0, 44]], max_iterations=4)
    np.testing.assert_array_equal(fit.converged, [False, True])
    assert fit.iterations[0] == 4 and fit.iterations[1] <= 4
    best = logistic.fit(features, labels, 10, logistic.GRID[:1]).objective
    assert fit.objective[0] > 2 * best[0]


def test_one_vs_all_leaves_the_difficult_out():
    features, labels, _, _ = digits()
    targets = np.where(labels[:, None] == np.arange(4), 1, -1)
    targets[np.random.default_rng(0).uniform(size=targets.shape) < 0.2] = 0
    fit = logistic.fit(features, targets, 4, SOME)
    assert fit.converged.all()
    for i, l2 in enumerate(SOME):
        total = 0.0
        for c in range(4):
            kept = targets[:, c] != 0
            model = oracle(features[kept], targets[kept, c], l2)
            expected = model.decision_function(features)
            margins = targets[kept, c] * expected[kept]
            total += np.logaddexp(0, -margins).sum() + l2 / 2 * np.sum(model.coef_**2)
            found = logistic.logits(features, fit.weights[i], fit.biases[i])[:, c]
            np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
        np.testing.assert_allclose(fit.objective[i], total, rtol=1e-4)


def test_bias_is_not_penalized():
    # Far from the origin the optimum is the same, if only the bias moves.
    features, labels, _, _ = digits()
    offset = 30 * np.random.default_rng(0).uniform(1, 2, size=features.shape[1])
    moved = features + offset.astype(np.float32)
    found = logistic.fit(moved, labels, 10, L2)
    np.testing.assert_allclose(found.objective, optima(features, labels, L2), rtol=1e-4)
    logits = logistic.logits(moved, found.weights[2], found.biases[2])
    expected = oracle(features, labels, L2[2]).decision_function(features)
    logits -= logits.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(logits, expected, atol=0.02)
    # With unequal classes and an infinite penalty it is the logarithm of their frequencies.
    fit = logistic.fit(features[:, :3], np.repeat([0, 1], [100, 300]), 2, np.array([1e9]))
    np.testing.assert_allclose(fit.biases[0, 1] - fit.biases[0, 0], np.log(3), rtol=1e-3)


def test_groups_do_not_change_the_result():
    features, labels, _, _ = digits()
    l2 = logistic.GRID[16::3]
    one = logistic.fit(features, labels, 10, l2)
    calls = []
    size = functools.partial(logistic.group_size, len(l2), 400, 65, 10, np.float32)
    some = next(gb for gb in np.geomspace(1e-4, 1, 50) if size(gb) == 4)
    groups = logistic.fit(features, labels, 10, l2, memory_gb=some, progress=calls.append)
    assert calls == [4, 8, 10]
    together = logistic.fit(features, labels, 10, l2, memory_gb=4)
    for fit in (groups, together):
        assert fit.converged.all()
        np.testing.assert_allclose(fit.objective, one.objective, rtol=1e-4)
    # The order of the values is the caller's.
    turned = logistic.fit(features, labels, 10, l2[::-1], memory_gb=some)
    np.testing.assert_array_equal(turned.objective[::-1], groups.objective)
    np.testing.assert_array_equal(turned.weights[::-1], groups.weights)


def test_groups_fit_into_the_memory():
    # 75,000 x 2,048 features, 101 classes: 173 MiB for [N, C] and 22 MiB for [D, C] of each value.
    sizes = [logistic.group_size(45, 75000, 2049, 101, np.float32, gb) for gb in (0, 1, 4, 100)]
    assert sizes == [1, 5, 15, 45]


def test_features_without_spread_have_no_weight():
    features, labels, _, _ = digits()
    dead = np.flatnonzero(features.std(axis=0) == 0)
    assert len(dead)
    fit = logistic.fit(features, labels, 10, SOME)
    np.testing.assert_allclose(fit.weights[:, dead], 0, atol=1e-6)


def dots(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", None)
            if inner is not None:
                yield from dots(inner)


@pytest.mark.parametrize("values", [1, 3])
@pytest.mark.parametrize("multinomial", [True, False])
def test_products_have_the_highest_precision(values, multinomial):
    def run(features, signs, spread, l2, start):
        return logistic_solver.solve(features, signs, spread, l2, start, multinomial, 10, 1e-6)

    shapes = [(20, 6), (4, 20), (6,), (values,), (values, 4, 6)]
    found = list(dots(jax.make_jaxpr(run)(*[jnp.ones(shape) for shape in shapes]).jaxpr))
    # Forward and backward before the first iteration and in each, and forward at a renewal.
    assert sum(len(dot.outvars[0].aval.shape) == 2 for dot in found) >= 5
    product = jax.make_jaxpr(logistic._logits)(jnp.ones((5, 3)), jnp.ones((3, 2)), jnp.ones(2))
    found += dots(product.jaxpr)
    back = jax.make_jaxpr(logistic._rotate_back)(jnp.ones((values, 4, 6)), jnp.ones((7, 5)))
    found += dots(back.jaxpr)
    assert all(dot.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for dot in found)


def test_logits_are_those_of_numpy():
    generator = np.random.default_rng(0)
    features, weights = generator.normal(size=(7, 3)), generator.normal(size=(2, 3, 4))
    biases = generator.normal(size=(2, 4))
    expected = np.stack([features @ w + b for w, b in zip(weights, biases, strict=True)])
    result = logistic.logits(*map(np.float32, (features, weights, biases)))
    np.testing.assert_allclose(result, expected, atol=1e-5)
    first = logistic.logits(*map(np.float32, (features, weights[0], biases[0])))
    np.testing.assert_allclose(first, expected[0], atol=1e-5)


def test_logits_in_parts(monkeypatch):
    features, weights = np.float32(np.arange(14).reshape(7, 2)), np.ones((3, 2, 4), np.float32)
    whole = logistic.logits(features, weights, np.zeros((3, 4), np.float32))
    monkeypatch.setattr(logistic, "ROWS", 3)
    parts = logistic.logits(features, weights, np.zeros((3, 4), np.float32))
    np.testing.assert_array_equal(parts, whole)


def test_selection():
    l2 = np.array([3.0, 1.0, 2.0, 0.5])
    assert logistic.select(np.array([0.7, 0.9, 0.9, 0.1]), l2) == (1, False)
    assert logistic.select(np.array([0.7, 0.2, 0.9, 0.1]), l2) == (2, False)
    assert logistic.select(np.array([0.9, 0.2, 0.8, 0.1]), l2) == (0, True)
    assert logistic.select(np.array([0.9, 0.9, 0.8, 0.9]), l2) == (3, True)
    with pytest.raises(UserError, match="scores for"):
        logistic.select(np.array([0.9, np.nan, 0.8, 0.9]), l2)


def test_mistakes_are_told():
    features, labels, _, _ = digits()
    for arguments, message in (
        ((features[0], labels, 10), "must have shape \\[N, D\\]"),
        ((features, labels, 9), "labels from 0 to 9 with 9 classes"),
        ((features, labels[1:], 10), "targets of shape"),
        ((features, np.full((400, 10), 2), 10), "must contain only"),
        ((features, labels, 10, np.array([1.0, 0.0])), "positive"),
        ((features + np.inf, labels, 10), "not finite"),
    ):
        with pytest.raises(UserError, match=message):
            logistic.fit(*arguments)

"""The label-free monitors, against the equations and what they are known to give."""

import math

import numpy as np
import pytest

from gsjax.train import monitors


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def views():
    return unit(np.random.default_rng(0).normal(size=(9, 3, 4)))


def test_alignment_and_uniformity_equal_the_loops(views):
    squares = [
        sum((image[i] - image[j]) ** 2) for image in views for i in range(3) for j in range(i)
    ]
    assert monitors.alignment(views) == pytest.approx(np.mean(squares), rel=1e-12)
    rows = views[:, 0]
    kernels = [
        math.exp(-2 * sum((rows[i] - rows[j]) ** 2)) for i in range(9) for j in range(9) if i != j
    ]
    assert monitors.uniformity(rows) == pytest.approx(math.log(np.mean(kernels)), rel=1e-12)


def test_uniformity_of_the_sphere_and_at_collapse():
    """On a sphere of many dimensions d^2 is about 2."""
    rows = unit(np.random.default_rng(0).normal(size=(256, 2048)))
    assert monitors.uniformity(rows) == pytest.approx(-4, abs=0.02)
    assert monitors.uniformity(rows[:1].repeat(256, axis=0)) == pytest.approx(0, abs=1e-9)


def test_rankme_is_the_rank_of_equal_singular_values():
    orthonormal = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0]
    for rank in (1, 5, 64):
        z = orthonormal[:, :rank] @ orthonormal[:rank]
        assert monitors.rankme(7 * z) == pytest.approx(rank, rel=1e-3)
    assert monitors.rankme(np.zeros((8, 4))) == pytest.approx(1, abs=1e-4)


def test_rankme_is_the_exponential_of_an_entropy():
    z = np.diag([0.5, 0.25, 0.25])
    assert monitors.rankme(z) == pytest.approx(2**1.5, rel=1e-4)


def test_embeddings_that_are_not_finite_stop_nothing(views):
    """The step's own check says what is wrong, one step later."""
    broken = views.copy()
    broken[3, 1, 2] = np.nan
    scalars = monitors.summarize({"loss": np.float32(1), "embeddings": broken})
    assert scalars["loss"] == 1 and all(
        np.isnan(scalars[name]) for name in ("alignment", "uniformity", "rankme")
    )


def test_a_step_without_embeddings_has_no_monitors(views):
    values = {"loss": np.float32(0.5), "embeddings": 3 * views}
    scalars = monitors.summarize(values)
    assert set(scalars) == {"loss", "alignment", "uniformity", "rankme"}
    assert scalars["alignment"] == pytest.approx(monitors.alignment(views))
    assert scalars["rankme"] == pytest.approx(monitors.rankme(views[:, 0]))  # of the scale free
    assert monitors.summarize({"loss": np.float32(0.5)}) == {"loss": 0.5}

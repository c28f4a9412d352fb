"""kNN against scikit-learn, and its behavior at the edges."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from gsjax.config import defaults
from gsjax.errors import UserError
from gsjax.evaluate import knn, nearest
from gsjax.evaluate.features import Features


def data(n=700, queries=150, features=24, classes=7):
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(classes, features))
    labels = generator.integers(0, classes, n)
    bank = centers[labels] + 1.5 * generator.normal(size=(n, features))
    queries = centers[generator.integers(0, classes, queries)]
    queries = queries + 1.5 * generator.normal(size=queries.shape)
    return bank.astype(np.float32), labels, queries.astype(np.float32)


@pytest.mark.parametrize(
    "protocol",
    [nearest.Protocol(21, 0.0), nearest.Protocol(20, 0.1), nearest.Protocol(1, 0.0)],
)
@pytest.mark.parametrize("chunks", [(1024, 65536), (64, 100)])
def test_predictions_equal_scikit_learns(protocol, chunks):
    bank, labels, queries = data()

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def weights(distances):
        return np.exp((1 - distances) / protocol.temperature)

    oracle = KNeighborsClassifier(
        protocol.k, metric="cosine", weights=weights if protocol.temperature else "uniform"
    )
    oracle.fit(unit(bank.astype(np.float64)), labels)
    predicted = nearest.predict(bank, labels, queries, protocol, *chunks)
    probabilities = oracle.predict_proba(unit(queries.astype(np.float64)))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    has_votes = np.take_along_axis(probabilities, order, axis=1) > 0
    np.testing.assert_array_equal(predicted, np.where(has_votes, order, -1))


def test_predictions_equal_scikit_learns_on_many():
    """The size that matters: 2,000 pictures of 500 features."""
    bank, labels, queries = data(1500, 500, 500)
    oracle = KNeighborsClassifier(201, metric="cosine").fit(bank, labels)
    predicted = nearest.predict(bank, labels, queries, nearest.Protocol(201, 0.0))
    np.testing.assert_array_equal(predicted[:, 0], oracle.predict(queries))


def test_accuracy_counts_the_first_and_the_first_five():
    bank, labels, queries = data()
    truth = np.random.default_rng(1).integers(0, 7, len(queries))
    rows = [
        Features(feature, label, np.arange(len(label)), np.ones(len(label), bool))
        for feature, label in ((bank, labels), (queries, truth))
    ]
    scores = knn.accuracy(*rows, nearest.Protocol(21, 0.0))
    predicted = nearest.predict(bank, labels, queries, nearest.Protocol(21, 0.0))
    hits = [list(row).index(t) if t in row else 9 for row, t in zip(predicted, truth, strict=True)]
    assert scores["top1"] == pytest.approx(100 * np.mean(np.array(hits) == 0))
    assert scores["top5"] == pytest.approx(100 * np.mean(np.array(hits) < 5))
    with pytest.raises(UserError, match="801 neighbors among 700 images"):
        knn.accuracy(*rows, nearest.Protocol(801, 0.0))


def test_search_is_in_full_precision():
    bank, labels, queries = data(50, 8)
    best = np.full((8, 3), -np.inf, np.float32), np.zeros((8, 3), np.int32)
    jaxpr = jax.make_jaxpr(nearest._merge_nearest)(queries, bank, labels.astype(np.int32), *best)
    assert "precision=Precision.HIGHEST" in str(jaxpr) or "HIGHEST" in str(jaxpr)


def test_presets_and_too_few_images():
    config = defaults.get_config().knn
    assert knn.create_protocol(config, 1000) == nearest.Protocol(201, 0.0)
    config.preset = "instdisc"
    assert knn.create_protocol(config, 1000) == nearest.Protocol(200, 0.1)
    config.k = 5
    assert knn.create_protocol(config, 1000).k == 5
    with pytest.raises(UserError, match="5 neighbors among 4 images; set knn.k"):
        knn.create_protocol(config, 4)

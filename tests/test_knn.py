"""kNN against scikit-learn, and its behaviour at the edges."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from gsjax import defaults
from gsjax.errors import UserError
from gsjax.evaluate import knn


def data(n=700, queries=150, features=24, classes=7):
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(classes, features))
    labels = generator.integers(0, classes, n)
    bank = centres[labels] + 1.5 * generator.normal(size=(n, features))
    queries = centres[generator.integers(0, classes, queries)]
    queries = queries + 1.5 * generator.normal(size=queries.shape)
    return bank.astype(np.float32), labels, queries.astype(np.float32)


@pytest.mark.parametrize("protocol", [knn.Protocol(21, 0.0), knn.Protocol(20, 0.1)])
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
    predicted = knn.knn_predict(bank, labels, queries, protocol, *chunks)
    np.testing.assert_array_equal(predicted, oracle.predict(unit(queries.astype(np.float64))))


def test_search_is_in_full_precision():
    bank, labels, queries = data(50, 8)
    best = np.full((8, 3), -np.inf, np.float32), np.zeros((8, 3), np.int32)
    jaxpr = jax.make_jaxpr(knn._nearer)(queries, bank, labels.astype(np.int32), *best)
    assert "precision=Precision.HIGHEST" in str(jaxpr) or "HIGHEST" in str(jaxpr)


def test_presets_and_too_few_images():
    config = defaults.get_config().knn
    assert knn.create_protocol(config, 1000) == knn.Protocol(201, 0.0)
    config.preset = "instdisc"
    assert knn.create_protocol(config, 1000) == knn.Protocol(200, 0.1)
    config.k = 5
    assert knn.create_protocol(config, 1000).k == 5
    with pytest.raises(UserError, match="5 neighbours among 4 images; set knn.k"):
        knn.create_protocol(config, 4)

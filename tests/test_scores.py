"""Scores against scikit-learn, on data whose classes differ in size."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from gsjax.errors import UserError
from gsjax.evaluate import average_precision, scores


def unbalanced():
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 1, 2, 5], p=[0.7, 0.2, 0.08, 0.02], size=500)
    right = generator.random(500) < np.where(labels == 0, 0.95, 0.4)
    return np.where(right, labels, generator.choice([0, 1, 2, 5], size=500)), labels


def test_accuracies_equal_scikit_learns():
    predicted, labels = unbalanced()
    top1, per_class = scores.top1(predicted, labels), scores.mean_per_class(predicted, labels)
    assert top1 == pytest.approx(100 * accuracy_score(labels, predicted), rel=1e-12)
    assert per_class == pytest.approx(100 * balanced_accuracy_score(labels, predicted), rel=1e-12)
    assert top1 - per_class > 15  # the data tells one from the other


def test_a_class_that_is_only_predicted_does_not_count():
    got = scores.mean_per_class(np.array([0, 3, 1, 1]), np.array([0, 0, 1, 1]))
    assert got == pytest.approx(75)


def test_map_is_the_mean_over_classes_with_positives():
    values = np.array([[3, 1, 0], [2, 2, 0], [1, 3, 0], [0, 9, 0]], np.float32)
    targets = np.array([[1, 1, -1], [1, -1, -1], [-1, -1, 0], [-1, 0, -1]])
    # class 0 is right, class 1 finds its one after two others, class 2 has none
    assert scores.eleven_point_map(values, targets) == pytest.approx(100 * (1 + 1 / 3) / 2)


def test_map_takes_each_class_by_itself():
    generator = np.random.default_rng(0)
    values, targets = generator.normal(size=(50, 4)), generator.integers(-1, 2, (50, 4))
    each = [average_precision.eleven_point(values[:, c], targets[:, c]) for c in range(4)]
    assert len(set(each)) == 4
    assert scores.eleven_point_map(values, targets) == pytest.approx(100 * np.mean(each))


def test_map_without_any_positive_is_refused():
    with pytest.raises(UserError, match="none of the 2 classes has a positive among the 3"):
        scores.eleven_point_map(np.zeros((3, 2)), np.full((3, 2), -1))


@pytest.mark.parametrize("shapes", [((3,), (3, 1)), ((3,), (4,)), ((0,), (0,))])
@pytest.mark.parametrize("score", [scores.top1, scores.mean_per_class])
def test_shapes_are_checked(score, shapes):
    with pytest.raises(ValueError, match="equal, non-empty shapes"):
        score(*(np.zeros(shape, np.int64) for shape in shapes))

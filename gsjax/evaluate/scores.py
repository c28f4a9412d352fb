"""Classification scores of the transfer data sets, in percent."""

import numpy as np

from gsjax.errors import UserError
from gsjax.evaluate import average_precision


def top1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Percentage of images whose class is predicted correctly.

    Args:
      predicted: [N] class numbers.
      labels: [N] true class numbers.

    Returns:
      Accuracy from 0 to 100.

    Raises:
      ValueError: the shapes differ, or there are no images.
    """
    _check(predicted, labels, 1)
    return 100 * float(np.mean(predicted == labels))


def mean_per_class(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes of the percentage of their images predicted correctly.

    Args:
      predicted: [N] class numbers.
      labels: [N] true class numbers; a class that does not occur here does not count.

    Returns:
      Mean accuracy per class from 0 to 100.

    Raises:
      ValueError: the shapes differ, or there are no images.
    """
    _check(predicted, labels, 1)
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return 100 * float(np.mean(np.bincount(classes, predicted == labels) / sizes))


def eleven_point_map(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean over the classes of VOC 2007's 11-point average precision.

    Args:
      scores: [N, C], higher is more likely.
      targets: [N, C] 1, -1 or 0 (difficult: left out for that class). A class without any 1 has
        no average precision and does not count.

    Returns:
      mAP from 0 to 100.

    Raises:
      ValueError: the shapes differ, or there are no images.
      UserError: no class has a positive image.
    """
    _check(scores, targets, 2)
    columns = zip(scores.T, targets.T, strict=True)
    values = np.array([average_precision.eleven_point(*column) for column in columns])
    if np.isnan(values).all():
        raise UserError(
            f"mAP is undefined: none of the {len(values)} classes has a positive among the "
            f"{len(targets)} images; use a split with labels"
        )
    return 100 * float(np.nanmean(values))


def _check(left: np.ndarray, right: np.ndarray, dimensions: int) -> None:
    if left.shape != right.shape or left.ndim != dimensions or not left.size:
        raise ValueError(f"expected equal, non-empty shapes, not {left.shape} and {right.shape}")

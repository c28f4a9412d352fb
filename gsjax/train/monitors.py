"""Label-free monitors of a batch's embeddings: alignment, uniformity and RankMe.

The step returns the embeddings; the rest is computed on the host, for logged steps only.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

_EPSILON = 1e-7  # of RankMe, eq. 3


def summarize(values: Mapping[str, Any]) -> dict[str, float]:
    """Replaces a step's `embeddings` by the monitors.

    Args:
      values: the step's metrics, all scalars but `embeddings` [N, W, D] of the global views of N
        images, which a method may leave out.

    Returns:
      The scalars as numbers; the monitors are NaN if an embedding is not finite.
    """
    scalars = {name: float(value) for name, value in values.items() if name != "embeddings"}
    if "embeddings" not in values:
        return scalars
    z = np.asarray(values["embeddings"], np.float64)
    if not np.isfinite(z).all():
        return scalars | dict.fromkeys(("alignment", "uniformity", "rankme"), float("nan"))
    unit = z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    return scalars | {
        "alignment": alignment(unit),
        "uniformity": uniformity(unit[:, 0]),
        "rankme": rankme(z[:, 0]),
    }


def alignment(unit: np.ndarray) -> float:
    """Returns the mean squared distance of two views of an image (Wang and Isola 2020, eq. 4).

    Args:
      unit: [N, W, D] unit vectors.
    """
    first, second = np.triu_indices(unit.shape[1], 1)
    squares = np.sum(np.square(unit[:, first] - unit[:, second]), axis=-1)
    return float(np.mean(squares)) if squares.size else 0.0


def uniformity(unit: np.ndarray) -> float:
    """Returns log E exp(-2 d^2) over pairs of images (Wang and Isola 2020, eq. 6).

    About -4 for vectors spread over the whole sphere, 0 at collapse.

    Args:
      unit: [N, D] unit vectors, N >= 2.
    """
    squares = np.maximum(2 - 2 * unit @ unit.T, 0)
    pairs = np.triu_indices(len(unit), 1)
    return float(np.log(np.mean(np.exp(-2 * squares[pairs]))))


def rankme(z: np.ndarray) -> float:
    """Returns the effective rank exp(entropy of the singular values) (Garrido et al. 2023, eq. 3).

    Between 1 and min(N, D). The paper takes 25,600 images; fewer limit it to their number.

    Args:
      z: [N, D] embeddings, not normalized.
    """
    # Of the smaller Gram matrix: ten times faster than singular values, and as exact as needed.
    gram = z @ z.T if len(z) < z.shape[1] else z.T @ z
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
    share = singular / max(float(np.sum(singular)), 1e-30) + _EPSILON
    return float(np.exp(-np.sum(share * np.log(share))))

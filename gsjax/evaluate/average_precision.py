"""Average precision of one ranking: revisited Oxford/Paris and VOC 2007's 11-point AP."""

from typing import NamedTuple

import numpy as np


class Retrieval(NamedTuple):
    """Scores of one query, each in [0, 1]; their means over queries are mAP and mP@k.

    Attributes:
      ap: average precision.
      p1: precision after 1 result.
      p5: precision after 5 results, or at the last positive if that comes first.
      p10: precision after 10 results, or at the last positive if that comes first.
    """

    ap: float
    p1: float
    p5: float
    p10: float


def revisited(ranking: np.ndarray, positives: np.ndarray, junk: np.ndarray) -> Retrieval:
    """Scores one query as revisited Oxford/Paris does: trapezoidal AP and P@k without junk.

    With n positives, the j-th of them (from 0) at rank r (from 0, junk not counted) adds
    (j / r + (j + 1) / (r + 1)) / 2n to the AP, where j / r is 1 at r = 0. P@k is the share of
    positives among the first min(k, rank of the last positive) results: with few positives it is
    larger than the usual P@k. A positive missing from the ranking adds nothing.

    Args:
      ranking: [M] database indices, most similar first, each at most once.
      positives: [P] indices of the positives, each once.
      junk: [J] indices that count neither way, none of them positive.

    Returns:
      AP and P@1, P@5, P@10.

    Raises:
      ValueError: there are no positives; the protocol skips such a query.

    Source: Radenovic et al., CVPR 2018; github.com/filipradenovic/revisitop, evaluate.py.
    """
    if not len(positives):
        raise ValueError("a query without positives has no average precision")
    counted = ranking[~np.isin(ranking, junk)]
    ranks = np.flatnonzero(np.isin(counted, positives))
    if not len(ranks):
        return Retrieval(0.0, 0.0, 0.0, 0.0)
    found = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    after = (found + 1) / (ranks + 1)
    ap = float(np.sum(before + after) / 2 / len(positives))
    cuts = (min(k, int(ranks[-1]) + 1) for k in (1, 5, 10))
    return Retrieval(ap, *(float(np.sum(ranks < cut) / cut) for cut in cuts))


def eleven_point(scores: np.ndarray, targets: np.ndarray) -> float:
    """11-point average precision of one class, as in VOC 2007.

    The mean over t = 0, 0.1, ..., 1 of the highest precision at a recall of at least t. Recall is
    compared in integers, so 3 of 10 positives do reach t = 0.3.

    Args:
      scores: [N], higher is more likely; ties rank the earlier image first, NaN ranks last.
      targets: [N] 1 (the class is present), -1 (absent) or 0 (difficult: left out).

    Returns:
      AP in [0, 1]; NaN without positives, where recall is undefined.

    Source: Everingham et al., The Pascal VOC Challenge, IJCV 2010, section 4.2; VOC2007 devkit.
    """
    counted = targets != 0
    order = np.argsort(-np.asarray(scores[counted], np.float64), kind="stable")
    right = targets[counted][order] > 0
    total = int(right.sum())
    if not total:
        return float("nan")
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(hits) + 1)
    # Every recall is reached at the last positive at the latest, so no maximum is over nothing.
    return float(np.mean([precision[10 * hits >= t * total].max() for t in range(11)]))

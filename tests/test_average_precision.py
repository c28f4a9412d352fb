"""Average precision against published values, slow transcriptions and hand-computed cases."""

import fractions

import numpy as np
import pytest

from gsjax.evaluate import average_precision


def test_revisited_golden():
    got = average_precision.revisited(np.arange(8), np.array([1, 3, 6]), np.array([0, 4]))
    np.testing.assert_allclose(got, [0.7111111111, 1, 0.6, 0.6], rtol=1e-9)


def slow_revisited(ranking, positives, junk):
    """The definition, result by result: the area under the precision-recall line."""
    area = seen = hits = 0.0
    hit_ranks = []
    for index in ranking:
        if index in junk:
            continue
        if index in positives:
            before = hits / seen if seen else 1.0
            after = (hits + 1) / (seen + 1)
            area += (before + after) / 2 / len(positives)
            hits += 1
            hit_ranks.append(seen + 1)
        seen += 1
    precisions = []
    for k in (1, 5, 10):
        cut = min(k, hit_ranks[-1])
        precisions.append(sum(rank <= cut for rank in hit_ranks) / cut)
    return area, *precisions


def test_revisited_equals_the_slow_loop():
    generator = np.random.default_rng(0)
    for _ in range(200):
        size = generator.integers(1, 40)
        num_positives = generator.integers(1, size + 1)
        num_junk = generator.integers(0, size - num_positives + 1)
        positives, junk, _ = np.split(
            generator.permutation(size), [num_positives, num_positives + num_junk]
        )
        ranking = generator.permutation(size)
        got = average_precision.revisited(ranking, positives, junk)
        want = slow_revisited(ranking.tolist(), positives.tolist(), junk.tolist())
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_revisited_counts_a_positive_that_the_ranking_lacks_as_missed():
    nothing = np.array([], np.int64)
    half = average_precision.revisited(np.array([7, 2]), np.array([7, 9]), nothing)
    np.testing.assert_allclose(half, [0.5, 1, 1, 1])
    none = average_precision.revisited(np.array([1, 2]), np.array([7, 9]), nothing)
    assert none == (0, 0, 0, 0)


def test_revisited_without_positives_is_refused():
    with pytest.raises(ValueError, match="without positives"):
        average_precision.revisited(np.arange(3), np.array([], np.int64), np.array([0]))


@pytest.mark.parametrize(
    ("targets", "want"),  # best score first
    [
        ([1, 1, -1, -1], 1.0),
        ([-1, 1, -1, 1], 0.5),  # precision 1/2 at both recalls
        ([1, -1, -1, 1], (6 * 1 + 5 * 0.5) / 11),  # t = 0 ... 0.5 from the first hit
        ([-1, -1, -1, 1], 0.25),
        ([1, 0, -1, 0, 1], (6 * 1 + 5 * 2 / 3) / 11),  # difficult ones are not there at all
        ([0, 0, 1, -1], 1.0),
        ([-1] + [1] * 10, 10 / 11),  # precision rises: the best comes last
        # 10 positives, where the recall of the third hit equals t = 0.3 only in whole numbers.
        ([1] * 3 + [-1] * 7 + [1] * 7, (4 * 1 + 7 * 10 / 17) / 11),
    ],
)
def test_eleven_point_by_hand(targets, want):
    targets = np.array(targets)
    scores = -np.arange(len(targets), dtype=np.float32)
    assert average_precision.eleven_point(scores, targets) == pytest.approx(want, rel=1e-12)
    shuffled = np.random.default_rng(0).permutation(len(targets))
    got = average_precision.eleven_point(scores[shuffled], targets[shuffled])
    assert got == pytest.approx(want, rel=1e-12)


def slow_eleven_point(scores, targets):
    """The definition in exact fractions; Python's sort is stable."""
    pairs = [(s, t) for s, t in zip(scores, targets, strict=True) if t != 0]
    pairs = sorted(pairs, key=lambda pair: -pair[0])
    total = sum(t == 1 for _, t in pairs)
    points, hits = [], 0
    for place, (_, target) in enumerate(pairs, start=1):
        hits += target == 1
        points.append((fractions.Fraction(hits, total), fractions.Fraction(hits, place)))
    levels = [fractions.Fraction(tenth, 10) for tenth in range(11)]
    return sum(max(p for r, p in points if r >= level) for level in levels) / 11


@pytest.mark.parametrize("distinct", [3, 1000])
def test_eleven_point_equals_the_slow_loop_also_with_equal_scores(distinct):
    generator = np.random.default_rng(0)
    for _ in range(20):
        size = generator.integers(20, 200)
        scores = generator.integers(0, distinct, size).astype(np.float32)
        targets = generator.choice([1, -1, 0], p=[0.3, 0.6, 0.1], size=size)
        want = slow_eleven_point(scores.tolist(), targets.tolist())
        got = average_precision.eleven_point(scores, targets)
        assert got == pytest.approx(float(want), rel=1e-12)


def test_eleven_point_ranks_nan_last():
    scores = np.array([np.nan, 1.0, -np.inf])
    got = average_precision.eleven_point(scores, np.array([1, -1, -1]))
    assert got == pytest.approx(1 / 3)


def test_eleven_point_without_positives_is_nan():
    assert np.isnan(average_precision.eleven_point(np.arange(3.0), np.array([-1, 0, -1])))

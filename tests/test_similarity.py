import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsjax.errors import UserError
from gsjax.similarity import graded, intersection, ioa, iou

LARGE = [0.0, 0.0, 8.0, 10.0]
SMALL = [2.0, 3.0, 4.0, 5.0]  # inside LARGE
SHIFTED = [4.0, 6.0, 8.0, 10.0]  # shares 4 x 4 with LARGE
APART = [20.0, 0.0, 3.0, 3.0]


@st.composite
def boxes(draw, whole=False):
    """A box as [top, left, height, width], anywhere in a picture of up to 4096 pixels."""
    if whole:
        start, size = st.integers(0, 2048), st.integers(1, 2048)
    else:
        start, size = st.floats(0, 2048, width=32), st.floats(0.125, 2048, width=32)
    return np.array([draw(start), draw(start), draw(size), draw(size)], np.float32)


@jax.jit
def compiled(a, b):
    pairs = [ioa(a, b), ioa(b, a), iou(a, b), iou(b, a), ioa(a, a), iou(a, a)]
    return jnp.stack([*pairs, graded(ioa(a, b), 0.3)])


def slow_intersection(a, b):
    """Counts the pixels of two boxes of whole numbers that coincide."""
    picture = np.zeros((40, 40), int)
    for top, left, height, width in np.array([a, b], int):
        picture[top : top + height, left : left + width] += 1
    return np.sum(picture == 2)


@pytest.mark.parametrize(
    ("a", "b", "shared", "ioa_ab", "ioa_ba", "union_share"),
    [
        (SMALL, LARGE, 20, 1, 20 / 80, 20 / 80),
        (LARGE, SHIFTED, 16, 16 / 80, 16 / 80, 16 / 144),
        (SMALL, SHIFTED, 4, 4 / 20, 4 / 80, 4 / 96),
        (LARGE, APART, 0, 0, 0, 0),
        (LARGE, LARGE, 80, 1, 1, 1),
        ([0, 0, 4, 4], [4, 0, 4, 4], 0, 0, 0, 0),  # a common edge
        ([0, 0, 4, 4], [9, 9, 4, 4], 0, 0, 0, 0),  # apart on both axes
        ([0, 0, 0, 4], [0, 0, 4, 4], 0, 0, 0, 0),  # no area
    ],
)
def test_by_hand(a, b, shared, ioa_ab, ioa_ba, union_share):
    assert intersection(a, b) == intersection(b, a) == shared == slow_intersection(a, b)
    np.testing.assert_allclose(ioa(a, b), ioa_ab, rtol=1e-6)
    np.testing.assert_allclose(ioa(b, a), ioa_ba, rtol=1e-6)
    np.testing.assert_allclose(iou(a, b), union_share, rtol=1e-6)


@settings(deadline=None, max_examples=200)
@given(boxes(), boxes())
def test_bounds_and_symmetry_of_any_boxes(a, b):
    ioa_ab, ioa_ba, iou_ab, iou_ba, ioa_aa, iou_aa, psi = values = compiled(a, b)
    assert values.dtype == jnp.float32
    assert np.all(values >= 0) and np.all(values <= 1)
    np.testing.assert_allclose(iou_ab, iou_ba, rtol=1e-6)
    assert iou_ab <= min(ioa_ab, ioa_ba) * (1 + 1e-6)
    assert psi >= ioa_ab
    # The asymmetry: the same intersection, each over its own area.
    np.testing.assert_allclose(ioa_ab * a[2] * a[3], ioa_ba * b[2] * b[3], rtol=1e-5)
    np.testing.assert_allclose([ioa_aa, iou_aa], 1, rtol=1e-6)


@settings(deadline=None, max_examples=100)
@given(boxes(whole=True), st.data())
def test_small_in_large_and_disjoint(large, data):
    top, left, height, width = large.astype(int)
    small_height = data.draw(st.integers(1, int(height)))
    small_width = data.draw(st.integers(1, int(width)))
    small = np.array(
        [
            top + data.draw(st.integers(0, int(height - small_height))),
            left + data.draw(st.integers(0, int(width - small_width))),
            small_height,
            small_width,
        ],
        np.float32,
    )
    ioa_small, ioa_large = compiled(small, large)[:2]
    assert ioa_small == 1
    np.testing.assert_allclose(ioa_large, small_height * small_width / (height * width), rtol=1e-6)
    away = large + np.array([0, width + data.draw(st.integers(0, 50)), 0, 0], np.float32)
    assert np.all(compiled(large, away)[:4] == 0)


def test_batches_and_dtypes():
    first = np.array([[SMALL, LARGE], [SHIFTED, APART]])
    second = np.array([[LARGE, SHIFTED], [SMALL, LARGE]])
    expected = [[1, 0.2], [4 / 80, 0]]
    result = ioa(first.astype(np.float32), second.astype(np.float32))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert ioa(first.astype(np.int32), second.astype(np.int32)).dtype == jnp.float32
    with jax.enable_x64(True):
        result = graded(ioa(first, second), 0.5)
        assert result.dtype == jnp.float64
        np.testing.assert_allclose(result, np.minimum(np.array(expected) / 0.5, 1), rtol=1e-15)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.5, [0, 0.2, 1, 1, 1]),
        (1.0, [0, 0.1, 0.5, 0.6, 1]),
        (0.2, [0, 0.5, 1, 1, 1]),
        (0.0, [1, 1, 1, 1, 1]),
    ],
)
def test_graded(threshold, expected):
    overlap = np.array([0, 0.1, 0.5, 0.6, 1], np.float32)
    result = graded(overlap, threshold)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"\(2, 3\).*top, left"):
        ioa(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(UserError, match=r"1\.5"):
        graded(np.zeros(2), 1.5)

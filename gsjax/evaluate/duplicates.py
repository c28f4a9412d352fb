"""Near duplicates: groups of images whose representations are almost the same.

Needs only JAX, NumPy and SciPy. Every pair is compared, block by block, so time grows with the
square of the number of images, but memory does not.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gsjax.evaluate.nearest import unit

BLOCK = 4096  # rows compared with as many others at a time
_SLAB_BYTES = 2**30  # of representations kept while all later ones are read
_MERGE_AT = 2**20  # pairs collected before groups are merged

Reader = Callable[[int], Iterable[np.ndarray]]
"""(first row, a multiple of the block) -> the rows from there on, a block [BLOCK, F] at a time."""


class Groups(NamedTuple):
    """Groups of at least two rows, each connected by pairs of near duplicates.

    Attributes:
      members: the rows of each group, int64 [n], ascending; groups in the order of their first row.
      similarity: for each group, [n]: the largest cosine of each member with another one.
    """

    members: list[np.ndarray]
    similarity: list[np.ndarray]


def find_groups(
    read: Reader,
    num_rows: int,
    num_features: int,
    above: float,
    block: int = BLOCK,
    progress: Callable[[int], None] = lambda done: None,
) -> Groups:
    """Finds all pairs of rows with a cosine of more than `above`, and the groups that they connect.

    Args:
      read: reads the rows [N, F].
      num_rows: N.
      num_features: F.
      above: threshold of the cosine.
      block: rows compared with as many others at a time.
      progress: called with the number of pairs compared so far.
    """
    slab = max(_SLAB_BYTES // (4 * num_features * block), 1) * block
    found = _Components(num_rows)
    done = 0
    for start in range(0, num_rows, slab):
        kept: list[jax.Array] = []
        for number, rows in enumerate(read(start)):
            first = start + number * block
            others = unit(jnp.asarray(np.pad(rows, ((0, block - len(rows)), (0, 0)))))
            if first < start + slab:
                kept.append(others)
            for place, mine in enumerate(kept):
                begin = start + place * block
                i, j, cosines = _pairs_above(mine, others, above, begin == first)
                found.add(begin + i, first + j, cosines)
                done += block * len(rows) // (2 if begin == first else 1)
            progress(min(done, num_rows * (num_rows - 1) // 2))
    return found.groups()


def _pairs_above(
    rows: jax.Array, others: jax.Array, above: float, is_same: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (i, j) of rows [b, F] and others [b, F], and their cosines, if larger than `above`.

    If both are the same block, each pair once.
    """
    cosines, has_pairs = _compare(rows, others, above, is_same)
    found = np.flatnonzero(has_pairs)
    # Only rows with pairs leave the device; few shapes, because each is compiled.
    padded = np.resize(found, 2 ** math.ceil(math.log2(len(found)))) if len(found) else found
    picked = np.asarray(jnp.take(cosines, padded, axis=0))[: len(found)]
    i, j = np.nonzero(picked > above)
    return found[i], j, picked[i, j]


@functools.partial(jax.jit, static_argnums=3)
def _compare(rows, others, above, is_same):
    """Cosines [b, b], -inf where a pair does not count; whether a row has one above [b]."""
    cosines = jnp.matmul(rows, others.T, precision=lax.Precision.HIGHEST)
    if is_same:
        later = jnp.arange(len(rows))[:, None] < jnp.arange(len(rows))[None]
        cosines = jnp.where(later, cosines, -jnp.inf)
    return cosines, jnp.any(cosines > above, axis=1)


class _Components:
    """The groups that pairs connect, merged from time to time."""

    def __init__(self, num_rows: int) -> None:
        self._label = np.arange(num_rows)
        self._best = np.full(num_rows, -np.inf, np.float32)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, i: np.ndarray, j: np.ndarray, cosines: np.ndarray) -> None:
        if not len(i):
            return
        np.maximum.at(self._best, i, cosines)
        np.maximum.at(self._best, j, cosines)
        self._waiting.append((i, j))
        if sum(len(i) for i, _ in self._waiting) >= _MERGE_AT:
            self._merge()

    def _merge(self) -> None:
        if not self._waiting:
            return
        i, j = (self._label[np.concatenate(side)] for side in zip(*self._waiting, strict=True))
        size = len(self._label)
        graph = coo_array((np.ones(len(i), bool), (i, j)), (size, size))
        self._label = connected_components(graph, directed=False)[1][self._label]
        self._waiting = []

    def groups(self) -> Groups:
        self._merge()
        rows = np.flatnonzero(np.isfinite(self._best))
        order = rows[np.argsort(self._label[rows], kind="stable")]
        ends = np.flatnonzero(np.diff(self._label[order])) + 1
        members = [part for part in np.split(order, ends) if len(part)]
        members.sort(key=lambda part: part[0])
        return Groups(members, [self._best[part] for part in members])

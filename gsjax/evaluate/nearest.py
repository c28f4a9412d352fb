"""Exact nearest-neighbor search of representations on the device, and the neighbors' vote.

Needs only JAX and NumPy.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BANK_CHUNK = 65536  # rows on the device at a time
_QUERY_CHUNK = 1024
_NUM_RANKED = 5  # classes ranked


class Protocol(NamedTuple):
    """How neighbors vote.

    Attributes:
      k: number of neighbors.
      temperature: T of their weights exp(cos / T); 0 for equal weights.
    """

    k: int
    temperature: float


def predict(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    protocol: Protocol,
    query_chunk: int = _QUERY_CHUNK,
    bank_chunk: int = BANK_CHUNK,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Ranks the classes for each query by its k nearest neighbors in cosine similarity.

    Args:
      bank: [M, F] representations with known labels.
      bank_labels: [M] integers from 0.
      queries: [N, F].
      protocol: k <= M and the weighting.
      query_chunk: queries searched at a time.
      bank_chunk: bank rows on the device at a time.
      progress: called with the number of bank rows done.

    Returns:
      [N, 5] class numbers (fewer if there are fewer classes), most votes first, ties by smallest
      number; -1 in place of classes without votes.
    """
    num_classes = int(bank_labels.max()) + 1
    labels = jnp.asarray(bank_labels.astype(np.int32))
    found = _search(_parts(bank, bank_chunk), queries, protocol.k, query_chunk, progress)
    votes = [
        _vote(cosines, labels[indices], num_classes, protocol.temperature)
        for cosines, indices in found
    ]
    return np.concatenate([np.asarray(v) for v in votes])[: len(queries)]


def find(bank: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Finds the k rows of a bank [M, F] most similar to each query [N, F] by cosine.

    Returns:
      int32 [N, k] positions in the bank, most similar first; k <= M.
    """
    return find_in_parts(_parts(bank, BANK_CHUNK), queries, k)[1]


def find_in_parts(
    parts: Iterable[tuple[np.ndarray, np.ndarray]],
    queries: np.ndarray,
    k: int,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k rows most similar to each query [N, F] in a bank that is read part by part.

    Args:
      parts: rows [m, F] and their positions, integers [m]; at least k rows in all.
      queries: [N, F], kept on the device.
      k: number of rows.
      progress: called with the number of rows done.

    Returns:
      Cosines [N, k], largest first, and int32 [N, k] positions.
    """
    found = _search(parts, queries, k, _QUERY_CHUNK, progress)
    cosines, positions = (np.concatenate([*map(np.asarray, c)]) for c in zip(*found, strict=True))
    return cosines[: len(queries)], positions[: len(queries)]


def _parts(bank: np.ndarray, num_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(bank), num_rows):
        part = bank[start : start + num_rows]
        yield part, np.arange(start, start + len(part))


def _search(parts, queries, k, query_chunk, progress) -> list[tuple]:
    """Cosines and positions of the k nearest, [rows, k] each, for chunks of padded queries."""
    rows = min(query_chunk, len(queries))
    pieces = [queries[i : i + rows] for i in range(0, len(queries), rows)]
    chunks = [unit(jnp.asarray(np.pad(p, ((0, rows - len(p)), (0, 0))))) for p in pieces]
    best = [
        (jnp.full((rows, k), -jnp.inf, queries.dtype), jnp.zeros((rows, k), jnp.int32))
        for _ in chunks
    ]
    done = 0
    for part, positions in parts:
        bank, places = unit(jnp.asarray(part)), jnp.asarray(positions, jnp.int32)
        best = [_merge_nearest(q, bank, places, *b) for q, b in zip(chunks, best, strict=True)]
        done += len(part)
        progress(done)
    return best


@jax.jit
def unit(x: jax.Array) -> jax.Array:
    """Scales rows [..., F] to length 1; rows of zeros stay."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@jax.jit
def _merge_nearest(queries, bank, positions, best, best_positions):
    """Merges the nearest so far ([N, k] cosines and positions) with another part of the bank."""
    cosines = jnp.matmul(queries, bank.T, precision=lax.Precision.HIGHEST)
    k = best.shape[1]
    values, indices = lax.top_k(cosines, min(k, len(bank)))
    values = jnp.concatenate([best, values], axis=1)
    candidates = jnp.concatenate([best_positions, positions[indices]], axis=1)
    best, order = lax.top_k(values, k)
    return best, jnp.take_along_axis(candidates, order, axis=1)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _vote(cosines, labels, num_classes, temperature):
    weights = jnp.exp(cosines / temperature) if temperature else jnp.ones_like(cosines)

    def count(row_labels, row_weights):
        return jnp.zeros(num_classes, weights.dtype).at[row_labels].add(row_weights)

    votes, classes = lax.top_k(jax.vmap(count)(labels, weights), min(_NUM_RANKED, num_classes))
    return jnp.where(votes > 0, classes, -1)

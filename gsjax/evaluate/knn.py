"""k-nearest-neighbour classification of representations, by exact search on the device."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import lax

from gsjax import memory, metrics
from gsjax.data import sources, transforms
from gsjax.errors import UserError
from gsjax.evaluate import evaluation
from gsjax.evaluate.features import Features

_TOP = 5  # classes that are ranked
_QUERY_CHUNK, _BANK_CHUNK = 1024, 65536  # rows on the device at a time


class Protocol(NamedTuple):
    """How neighbours vote.

    Attributes:
      k: number of neighbours.
      temperature: T of their weights exp(cos / T); 0 for equal ones.
    """

    k: int
    temperature: float


_PRESETS = {
    "thesis": Protocol(201, 0.0),  # thesis 5.1: majority vote
    "instdisc": Protocol(200, 0.1),  # Wu et al. 2018, as in DINO's evaluation
}


def create_protocol(config: ml_collections.ConfigDict, bank_size: int) -> Protocol:
    """Reads the group `knn`; `bank_size` images are there to be neighbours."""
    protocol = _PRESETS[config.preset]
    if config.k:
        protocol = protocol._replace(k=config.k)
    if protocol.k > bank_size:
        raise UserError(_too_few(protocol.k, bank_size))
    return protocol


def _too_few(k: int, bank_size: int) -> str:
    return f"kNN asks for {k} neighbours among {bank_size} images; set knn.k to at most {bank_size}"


def _too_many(bank: np.ndarray, queries: np.ndarray) -> str:
    held = (queries.nbytes + bank[:_BANK_CHUNK].nbytes) / 2**30
    return (
        f"the search among {len(bank)} pictures holds {held:.1f} GiB of features on the device, "
        f"with those of all {len(queries)} that ask; take a smaller test split or free the device "
        "of other programs"
    )


def accuracy(bank: Features, queries: Features, protocol: Protocol) -> dict[str, float]:
    """Returns `top1` and `top5` in percent, of queries [N] classified by a bank [M].

    `top5` counts queries whose class is among the five with most votes, and has any.

    Raises:
      UserError: fewer pictures in the bank than neighbours, or too little memory for the search.
    """
    if protocol.k > len(bank.label):
        raise UserError(_too_few(protocol.k, len(bank.label)))
    shown = metrics.Progress("nearest neighbours", len(bank.label), inner=True)
    with memory.told_out_of_memory(lambda: _too_many(bank.feature, queries.feature)):
        predicted = knn_predict(
            bank.feature, bank.label, queries.feature, protocol, progress=shown.update
        )
    shown.close()
    hits = predicted == queries.label[:, None]
    return {"top1": 100 * float(hits[:, 0].mean()), "top5": 100 * float(hits.any(axis=1).mean())}


def knn_predict(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    protocol: Protocol,
    query_chunk: int = _QUERY_CHUNK,
    bank_chunk: int = _BANK_CHUNK,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Ranks the classes of every query by its k nearest neighbours in cosine similarity.

    Args:
      bank: [M, F] representations with known labels.
      bank_labels: [M] integers from 0.
      queries: [N, F].
      protocol: k <= M and the weighting.
      query_chunk: queries searched at a time.
      bank_chunk: bank rows on the device at a time.
      progress: told the number of bank rows done.

    Returns:
      [N, 5] class numbers (fewer where there are fewer classes), those with most votes first, of
      equal ones the smallest; -1 in place of classes without votes.
    """
    num_classes = int(bank_labels.max()) + 1
    labels = jnp.asarray(bank_labels.astype(np.int32))
    found = _search(bank, queries, protocol.k, query_chunk, bank_chunk, progress)
    votes = [
        _vote(cosines, labels[indices], num_classes, protocol.temperature)
        for cosines, indices in found
    ]
    return np.concatenate([np.asarray(v) for v in votes])[: len(queries)]


def nearest(bank: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Finds the k rows of a bank [M, F] most similar to each query [N, F] by cosine.

    Returns:
      int32 [N, k] places in the bank, the most similar first; k <= M.
    """
    found = _search(bank, queries, k, _QUERY_CHUNK, _BANK_CHUNK, lambda done: None)
    return np.concatenate([np.asarray(indices) for _, indices in found])[: len(queries)]


def _search(bank, queries, k, query_chunk, bank_chunk, progress) -> list[tuple]:
    """Cosines and places of the k nearest, [rows, k] each, for chunks of padded queries."""
    rows = min(query_chunk, len(queries))
    parts = [queries[i : i + rows] for i in range(0, len(queries), rows)]
    chunks = [_unit(jnp.asarray(np.pad(p, ((0, rows - len(p)), (0, 0))))) for p in parts]
    best = [
        (jnp.full((rows, k), -jnp.inf, queries.dtype), jnp.zeros((rows, k), jnp.int32))
        for _ in chunks
    ]
    for start in range(0, len(bank), bank_chunk):
        part = _unit(jnp.asarray(bank[start : start + bank_chunk]))
        places = jnp.arange(start, start + len(part), dtype=jnp.int32)
        best = [_nearer(q, part, places, *b) for q, b in zip(chunks, best, strict=True)]
        progress(min(start + bank_chunk, len(bank)))
    return best


@jax.jit
def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@jax.jit
def _nearer(queries, bank, places, best, best_places):
    """Merges the nearest so far ([N, k] cosines and places) with a further part of the bank."""
    cosines = jnp.matmul(queries, bank.T, precision=lax.Precision.HIGHEST)
    k = best.shape[1]
    values, indices = lax.top_k(cosines, min(k, len(bank)))
    values = jnp.concatenate([best, values], axis=1)
    candidates = jnp.concatenate([best_places, places[indices]], axis=1)
    best, order = lax.top_k(values, k)
    return best, jnp.take_along_axis(candidates, order, axis=1)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _vote(cosines, labels, num_classes, temperature):
    weights = jnp.exp(cosines / temperature) if temperature else jnp.ones_like(cosines)

    def count(row_labels, row_weights):
        return jnp.zeros(num_classes, weights.dtype).at[row_labels].add(row_weights)

    votes, classes = lax.top_k(jax.vmap(count)(labels, weights), min(_TOP, num_classes))
    return jnp.where(votes > 0, classes, -1)


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """The job `knn`: classifies the test split by its neighbours in the labelled split."""
    with evaluation.open_evaluation(config, workdir, "knn") as job:
        bank, queries = sources.open_labelled(config.data)
        protocol = create_protocol(config.knn, bank.num_examples)
        transform = transforms.central(config.data.image_size)
        rows = [job.features(source, transform) for source in (bank, queries)]
        known, asked = (part.decoded() for part in rows)
        scores = accuracy(known, asked, protocol)
        job.record(
            queries.dataset,
            {f"knn/{name}": value for name, value in scores.items()},
            protocol={
                **protocol._asdict(),
                "bank": bank.name,
                "queries": queries.name,
                "version": queries.version,
                "transform": repr(transform),
                "num_bank": len(known.label),
                "num_queries": len(asked.label),
                "num_left_out": sum(part.left_out for part in rows),
            },
        )

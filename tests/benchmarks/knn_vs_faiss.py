"""kNN of 10,000 queries against 50,000 features of 512 dimensions, beside faiss-cpu's exact search.

    pip install faiss-cpu && python tests/benchmarks/knn_vs_faiss.py

Prints seconds of both, taking turns, and their ratio; the classes they predict must agree.
"""

import time

import faiss
import numpy as np

from gsjax.evaluate import nearest

K, CLASSES, ROUNDS = 201, 100, 3


def features(generator, centers, n):
    """Positive and correlated, as pooled ReLU features are; with their classes."""
    labels = generator.integers(0, CLASSES, n)
    noise = generator.normal(size=(n, centers.shape[1]))
    return np.maximum(centers[labels] + noise, 0).astype(np.float32), labels


def with_faiss(bank, labels, queries):
    """Majority vote of the K nearest in cosine similarity, ties to the smaller class."""
    bank, queries = bank.copy(), queries.copy()
    faiss.normalize_L2(bank)
    faiss.normalize_L2(queries)
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank)
    _, places = index.search(queries, K)
    rows = np.repeat(np.arange(len(queries)), K) * CLASSES + labels[places].ravel()
    votes = np.bincount(rows, minlength=len(queries) * CLASSES).reshape(len(queries), CLASSES)
    return votes.argmax(axis=1)


def main():
    generator = np.random.default_rng(0)
    centers = 0.3 * generator.normal(size=(CLASSES, 512))
    bank, labels = features(generator, centers, 50_000)
    queries, truth = features(generator, centers, 10_000)
    protocol = nearest.Protocol(K, 0.0)
    print(f"faiss {faiss.__version__}, {faiss.omp_get_max_threads()} threads")
    seconds = {"gsjax": [], "faiss": []}
    for turn in range(ROUNDS + 1):
        began = time.monotonic()
        ours = nearest.predict(bank, labels, queries, protocol)[:, 0]
        seconds["gsjax"].append(time.monotonic() - began)
        began = time.monotonic()
        theirs = with_faiss(bank, labels, queries)
        seconds["faiss"].append(time.monotonic() - began)
        if turn == 0:
            print(f"first call of gsjax, with compilation: {seconds['gsjax'][0]:.2f} s")
            seconds = {"gsjax": [], "faiss": []}
    agree = np.mean(ours == theirs)
    print(f"same class: {agree:.4%}; accuracy {np.mean(ours == truth):.2%}")
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    print(f"gsjax {medians['gsjax']:.2f} s, faiss {medians['faiss']:.2f} s, "
          f"ratio gsjax / faiss {medians['gsjax'] / medians['faiss']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()

"""Seconds for the path of 45 penalties of logistic regression: gsjax and scikit-learn on the CPU.

    taskset -c 0,1 python tests/benchmarks/logistic_vs_sklearn.py

Both fit the same float32 features [1500, 512] of 102 classes, and are scored on 500 more: gsjax to
its default tolerance, scikit-learn with its default settings (lbfgs, at most 100 iterations, which
at small l2 stops far from the optimum), one value after another. scikit-learn runs twice, with
as many BLAS threads as it takes and with one: where other programs use the processor, threads
that wait for each other can make it twenty times slower. The ratio to look at is the one to the
faster of the two.

The features are synthetic (seed 0): prototypes of the classes and noise in 64 dimensions of falling
variance, projected to 512, rectified and scaled unevenly: positive, correlated, heavy-tailed.
"""

import argparse
import statistics
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from gsjax.evaluate import logistic

CLASSES = 102


def create_data(noise, seed=0, num_train=1500, num_validation=500, dim=512, latent=64):
    """Returns features and labels of both sets."""
    generator = np.random.default_rng(seed)
    num = num_train + num_validation
    labels = generator.permutation(np.arange(num) % CLASSES)
    deviations = np.arange(1, latent + 1) ** -0.5
    hidden = generator.normal(size=(CLASSES, latent))[labels]
    hidden = (hidden + noise * generator.normal(size=(num, latent))) * deviations
    mixed = hidden @ generator.normal(size=(latent, dim)) / np.sqrt(np.sum(deviations**2))
    features = np.maximum(mixed + 0.3 * generator.normal(size=(num, dim)), 0)
    features = np.float32(features * generator.lognormal(-0.7, 0.7, size=dim))
    cut = num_train
    return features[:cut], labels[:cut], features[cut:], labels[cut:]


def timed(function):
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def run_gsjax(features, labels, queries, answers, memory_gb):
    """Returns accuracies [L], converged [L] and the iterations of all."""
    fit = logistic.fit(features, labels, CLASSES, memory_gb=memory_gb)
    scores = [
        np.mean(logistic.logits(queries, *classifier).argmax(axis=1) == answers)
        for classifier in zip(fit.weights, fit.biases, strict=True)
    ]
    return np.array(scores), fit.converged, fit.iterations.sum()


def run_sklearn(features, labels, queries, answers):
    scores, converged, iterations = [], [], 0
    for l2 in logistic.GRID:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model = LogisticRegression(C=1 / l2).fit(features, labels)
        converged.append(not caught)
        scores.append(model.score(queries, answers))
        iterations += model.n_iter_[0]
    return np.array(scores), np.array(converged), iterations


def report(name, result, wall, cpu):
    scores, converged, iterations = result
    chosen = logistic.select(scores)
    print(
        f"{name:24} {wall:7.2f} s, {cpu:7.2f} CPU s, best validation accuracy "
        f"{100 * scores[chosen.position]:.1f} at l2 = {logistic.GRID[chosen.position]:.3g}, "
        f"{iterations} iterations, {converged.sum()} of {len(converged)} "
        "say they have converged",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--noise", type=float, default=1.6, help="of the features")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one-thread", action="store_true", help="no scikit-learn with threads")
    parser.add_argument("--memory_gb", type=float, default=0, help="of values fitted at once")
    args = parser.parse_args()
    data = create_data(args.noise, args.seed)
    report("gsjax, first call", *timed(lambda: run_gsjax(*data, args.memory_gb)))
    ratios, seconds = {}, []
    for _ in range(args.rounds):
        ours = timed(lambda: run_gsjax(*data, args.memory_gb))
        report("gsjax", *ours)
        seconds.append(ours[1])
        for threads in (1,) if args.one_thread else (1, None):
            with threadpool_limits(threads, user_api="blas"):
                theirs = timed(lambda: run_sklearn(*data))
            name = "scikit-learn" + (", 1 thread" if threads else "")
            report(name, *theirs)
            ratios.setdefault(name, []).append(theirs[1] / ours[1])
    for name, values in ratios.items():
        print(f"{name} / gsjax: {statistics.median(values):.1f} (median of {len(values)} rounds)")


if __name__ == "__main__":
    main()

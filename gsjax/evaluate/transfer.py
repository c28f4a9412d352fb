"""Transfer learning: logistic regression on features of other data sets (thesis 5.1, 6.2)."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from gsjax.data import transforms
from gsjax.errors import UserError
from gsjax.evaluate import datasets, evaluation, logistic, scores
from gsjax.evaluate.encoder import Encoder
from gsjax.evaluate.evaluation import Result
from gsjax.evaluate.features import Features
from gsjax.runtime import memory, metrics


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """The job `transfer`: one result for each of `transfer.datasets`."""
    evaluator = Transfer(config)  # finds all data sets before hours of work on one
    with evaluation.open_evaluation(config, workdir, "transfer") as job:
        job.record_all(evaluator)


class Transfer:
    """Logistic regression on each of `transfer.datasets`; an `Evaluator`."""

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        """Finds the data sets; raises UserError if one is missing."""
        self._config = config
        self._found = {}
        for name in datasets.parse_names(config.transfer.datasets):
            with _named(name):
                self._found[name] = datasets.find_dataset(
                    name, config.data, config.transfer.data_dir
                )

    def __call__(self, encoder: Encoder) -> Iterator[Result]:
        """Measures `transfer/<name>_<metric>` for one data set after another."""
        for name, (dataset, data_dir) in self._found.items():
            yield self._evaluate(encoder, name, dataset, data_dir)

    def _evaluate(
        self, encoder: Encoder, name: str, dataset: datasets.Dataset, data_dir: str
    ) -> Result:
        """Chooses l2 on validation images, fits on train and validation, scores on test images."""
        settings = self._config.transfer
        with _named(name):
            dataset, opened = datasets.open_dataset(dataset, self._config.data, data_dir)
        transform = transforms.transfer(self._config.data.image_size)
        size = settings.max_examples
        rows = {
            role: encoder.features(
                source, transform, datasets.random_subset(source.num_examples, size)
            )
            for role, source in opened.items()
        }
        left_out = sum(part.left_out for part in rows.values())
        rows = {role: part.decoded() for role, part in rows.items()}
        num_classes = _num_classes(opened["train"].class_names, rows["train"].label)
        if "validation" not in rows:
            whole = rows["train"]
            rows["train"], rows["validation"] = (
                Features(*(column[part] for column in whole))
                for part in datasets.split_validation(len(whole.label))
            )
        fitted = _fit(name, dataset.metric, num_classes, rows, settings)
        versions = {role: source.version for role, source in opened.items()}
        protocol = {
            **dataset._asdict(),
            "versions": versions,
            "validation_rule": "official split" if dataset.validation else "random 20 % of train",
            "transform": repr(transform),
            "max_examples": settings.max_examples,
            "max_iterations": settings.max_iterations,
            "num_images": {role: len(part.label) for role, part in rows.items()},
            "num_left_out": left_out,
            "num_classes": num_classes,
        }
        scores = {f"transfer/{name}_{dataset.metric}": fitted.score}
        return Result(name, scores, protocol, fitted.details)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Names the data set in errors."""
    try:
        yield
    except UserError as error:
        raise UserError(f"transfer.datasets: {name}: {error}") from error


class _Fitted(NamedTuple):
    """The score on the test images, in percent, and how it was reached."""

    score: float
    details: dict[str, Any]


def _fit(
    name: str,
    metric: str,
    num_classes: int,
    rows: dict[str, Features],
    settings: ml_collections.ConfigDict,
) -> _Fitted:
    """Chooses l2, fits, and scores; `rows` are train, validation and test."""
    train, held_out, test = rows["train"], rows["validation"], rows["test"]
    if num_classes < 2 or not all(len(part.label) for part in rows.values()):
        raise UserError(
            f"transfer.datasets: {name} has {num_classes} classes and "
            + ", ".join(f"{len(part.label)} {role}" for role, part in rows.items())
            + " images, which is too few; raise transfer.max_examples if it is set"
        )

    def fit(feature, label, l2, progress):
        with memory.explain_out_of_memory(lambda: _memory_advice(name, feature, settings)):
            return logistic.fit(
                feature,
                label,
                num_classes,
                l2,
                max_iterations=settings.max_iterations,
                memory_gb=settings.memory_gb,
                progress=progress.update,
            )

    progress = metrics.Progress(f"{name}: l2 grid", len(logistic.GRID), inner=True)
    grid = fit(train.feature, train.label, logistic.GRID, progress)
    progress.close()
    validation = [
        score(metric, logistic.logits(held_out.feature, *classifier), held_out.label)
        for classifier in zip(grid.weights, grid.biases, strict=True)
    ]
    chosen, at_end = logistic.select(np.array(validation))
    l2 = logistic.GRID[chosen]
    if at_end:
        metrics.log(f"{name}: warning: the best l2 value, {l2:.3g}, is at the end of the grid")
    final = fit(
        np.concatenate([train.feature, held_out.feature]),
        np.concatenate([train.label, held_out.label]),
        np.array([l2]),
        metrics.Progress(f"{name}: final fit", 1, inner=True),
    )
    value = score(
        metric, logistic.logits(test.feature, final.weights[0], final.biases[0]), test.label
    )
    metrics.log(
        f"{name}: {metric} {value:.2f} % at l2 = {l2:.3g}; "
        f"{int(grid.converged.sum())} of {len(logistic.GRID)} l2 values converged within "
        f"{settings.max_iterations} iterations"
        + ("" if final.converged[0] else "; the final fit did not")
        + (f"; max_examples={settings.max_examples}" if settings.max_examples else "")
    )
    columns = zip(logistic.GRID, validation, grid.converged, grid.iterations, strict=True)
    details = {
        "l2": l2,
        "l2_at_the_end_of_the_grid": at_end,
        "grid": [
            {"l2": value, "validation": v, "converged": bool(c), "iterations": int(n)}
            for value, v, c, n in columns
        ],
        "refit_converged": bool(final.converged[0]),
    }
    return _Fitted(value, details)


def _memory_advice(name: str, feature: np.ndarray, settings: ml_collections.ConfigDict) -> str:
    rows = f"logistic regression on {len(feature)} x {feature.shape[1]} features of {name}"
    if settings.memory_gb:
        return f"{rows}; lower transfer.memory_gb={settings.memory_gb:g}"
    return f"{rows}; use a subset with transfer.max_examples"


def score(metric: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """The metric of a data set in percent: logits [N, C], labels [N], or [N, C] for map11."""
    if metric == "map11":
        return scores.eleven_point_map(logits, labels)
    function = {"top1": scores.top1, "mean_per_class": scores.mean_per_class}[metric]
    return function(logits.argmax(axis=1), labels)


def _num_classes(names: tuple[str, ...] | None, labels: np.ndarray) -> int:
    if labels.ndim == 2:
        return labels.shape[1]
    return len(names) if names else int(labels.max()) + 1

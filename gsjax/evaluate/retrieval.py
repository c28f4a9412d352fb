"""Image retrieval in the format of revisited Oxford5k and Paris6k (thesis 5.1 and 6.3)."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax import lax
from PIL import Image

from gsjax.data import input_pipeline, transforms
from gsjax.data.paths import as_path
from gsjax.data.source import Source, from_files
from gsjax.errors import UserError
from gsjax.evaluate import average_precision, datasets, evaluation, ground_truth, pictures, store
from gsjax.evaluate.encoder import Encoder
from gsjax.evaluate.evaluation import Result
from gsjax.runtime import files, metrics, parallel

_SCALES = (1.0, 1 / math.sqrt(2), 0.5)  # of the protocol multiscale
_RESULTS = 10  # drawn per query
_CHUNK = 1024  # queries ranked at a time


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """The job `retrieval`: ranks each database for its queries, at three difficulties."""
    evaluator = Retrieval(config)
    with evaluation.open_evaluation(config, workdir, "retrieval") as job:
        job.record_all(evaluator)


class Retrieval:
    """Ranks each database of `retrieval.datasets` for its queries; an `Evaluator`."""

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        """Reads the ground truths; raises UserError if one or an image is missing."""
        settings = config.retrieval
        self._protocol, self._num_pictures = settings.protocol, settings.pictures
        thesis = settings.protocol == "thesis"
        self._image_size = config.data.image_size if thesis else settings.image_size
        if not settings.data_dir:
            raise UserError(
                "retrieval.data_dir is empty: name the folder with <data set>/gnd_<data set>.pkl "
                "and <data set>/jpg/"
            )
        root = as_path("retrieval.data_dir", settings.data_dir)
        names = datasets.parse_names(settings.datasets)
        self._truths = {name: ground_truth.load(root / name, name) for name in names}
        self._sources = {name: _open(name, root / name, self._truths[name]) for name in names}

    def __call__(self, encoder: Encoder) -> Iterator[Result]:
        """Measures `retrieval/<difficulty>_<metric>` for one database after another."""
        for name, truth in self._truths.items():
            yield self._evaluate(encoder, name, truth, *self._sources[name])

    def _evaluate(
        self,
        encoder: Encoder,
        name: str,
        truth: ground_truth.GroundTruth,
        base: Source,
        queries: Source,
    ) -> Result:
        boxes = tuple(query.box for query in truth.queries)
        for path, box in zip(queries.paths, boxes, strict=True):
            _check_box(path, box)
        ranking = rank(
            self._represent(encoder, base, None), self._represent(encoder, queries, boxes)
        )
        scores = {}
        counts = {}
        for difficulty in ground_truth.DIFFICULTIES:
            values, counts[difficulty] = score(ranking, truth, difficulty)
            if not counts[difficulty]:
                metrics.log(f"{name}: no query has positives at the difficulty {difficulty}")
            for metric, value in values.items():
                scores[f"retrieval/{difficulty}_{metric}"] = value
        protocol = {
            "protocol": self._protocol,
            "image_size": self._image_size,
            "num_database": base.num_examples,
            "num_queries": queries.num_examples,
            "ground_truth": store.digest(truth),
        }
        figures = _draw(base, queries, truth, ranking, self._num_pictures)
        return Result(name, scores, protocol, {"queries_with_positives": counts}, figures)

    def _represent(self, encoder: Encoder, source: Source, boxes: tuple | None) -> np.ndarray:
        """L2-normalized representations [N, F] by the configured protocol."""
        size, protocol = self._image_size, self._protocol
        scaled: list[transforms.Transform]
        if protocol == "thesis":
            scaled, shapes = [transforms.Stretched(size)], None
        else:
            scales = _SCALES if protocol == "multiscale" else (1.0,)
            scaled, shapes = [transforms.LongSide(size, scale) for scale in scales], []
            for i, path in enumerate(source.paths):
                shapes.append((_header(path), boxes[i] if boxes else None))
        total = np.zeros(1)
        for transform in scaled:
            cut = transforms.Cropped(boxes, transform) if boxes else transform
            rows = encoder.features(source, cut, shapes=shapes, need_all=True)
            total = total + _unit(rows.feature)
        return _unit(total).astype(np.float32)


def _open(name: str, folder: epath.Path, truth: ground_truth.GroundTruth) -> tuple[Source, Source]:
    """Opens the database and the queries."""
    base, queries = (
        [path.as_posix() for path in paths] for paths in ground_truth.image_paths(folder, truth)
    )
    root = epath.Path(base[0]).parent.as_posix()
    return (
        from_files(name, name, base, root=root),
        from_files(f"queries of {name}", name, queries, root=root),
    )


def score(
    ranking: np.ndarray, truth: ground_truth.GroundTruth, difficulty: str
) -> tuple[dict[str, float], int]:
    """Averages over the queries that have positives.

    Args:
      ranking: [Q, M] database indices, most similar first.
      truth: ground truth of Q queries.
      difficulty: easy, medium or hard.

    Returns:
      `mAP`, `mP@1`, `mP@5` and `mP@10` in percent (empty without such queries); their number.
    """
    values = []
    for query, order in zip(truth.queries, ranking, strict=True):
        positives, junk = ground_truth.positives_and_junk(query, difficulty)
        if len(positives):
            values.append(average_precision.revisited(order, positives, junk))
    if not values:
        return {}, 0
    means = 100 * np.mean(values, axis=0)
    names = ("mAP", "mP@1", "mP@5", "mP@10")
    return dict(zip(names, means.tolist(), strict=True)), len(values)


def rank(base: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Ranks a database [M, F] by cosine similarity to each query [Q, F]: indices [Q, M].

    Of equally similar images, the one with the smaller index comes first.
    """
    parts = [
        np.asarray(_similarity(jnp.asarray(queries[i : i + _CHUNK]), jnp.asarray(base)))
        for i in range(0, len(queries), _CHUNK)
    ]
    return np.argsort(-np.concatenate(parts), axis=1, kind="stable")


@jax.jit
def _similarity(queries: jax.Array, base: jax.Array) -> jax.Array:
    return jnp.matmul(queries, base.T, precision=lax.Precision.HIGHEST)


def _header(path: str) -> tuple:
    """Size and orientation of an image, which determine its shape."""
    try:
        with epath.Path(path).open("rb") as file, Image.open(file) as picture:
            return (*picture.size, picture.getexif().get(274, 1))
    except Exception as error:  # damaged bytes make Pillow raise almost anything
        raise UserError(f"{files.shown(path)} cannot be decoded: {error}") from error


def _check_box(path: str, box: tuple[float, float, float, float]) -> None:
    width, height, orientation = _header(path)
    if orientation >= 5:  # lies on its side
        width, height = height, width
    x0, y0, x1, y1 = map(round, box)
    if min(x1, width) <= max(x0, 0) or min(y1, height) <= max(y0, 0):
        raise UserError(f"the ground truth's box {box} is outside the image {files.shown(path)}")


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _draw(
    base: Source,
    queries: Source,
    truth: ground_truth.GroundTruth,
    ranking: np.ndarray,
    num_queries: int,
) -> dict[str, np.ndarray]:
    """Draws the first results of the first queries."""
    if not parallel.is_primary():
        return {}
    figures = {}
    for i, query in enumerate(truth.queries[:num_queries]):
        first = ranking[i, :_RESULTS]
        right, junk = (set(part) for part in ground_truth.positives_and_junk(query, "medium"))
        marks = ["right" if j in right else "junk" if j in junk else "wrong" for j in first]
        (whole,) = input_pipeline.load_images(queries, [i])
        results = input_pipeline.load_images(base, first.tolist())
        name = f"{base.dataset}/{files.shown(query.name)}"
        figures[name] = pictures.draw_ranking(whole, results, marks, query.box)
    return figures

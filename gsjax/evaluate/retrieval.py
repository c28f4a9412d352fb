"""Image retrieval in the format of revisited Oxford5k and Paris6k (thesis 5.1 and 6.3)."""

import contextlib
import math

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
from gsjax.evaluate.evaluation import Result
from gsjax.runtime import files, metrics, parallel

_SCALES = (1.0, 1 / math.sqrt(2), 0.5)  # of the protocol multiscale
_RESULTS = 10  # drawn per query
_CHUNK = 1024  # queries ranked at a time


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """The job `retrieval`: ranks each database for its queries, at three difficulties."""
    settings = config.retrieval
    if not settings.data_dir:
        raise UserError(
            "retrieval.data_dir is empty: name the folder that holds <data set>/gnd_<data set>.pkl "
            "and <data set>/jpg/"
        )
    names = datasets.parse_names(settings.datasets)
    root = as_path("retrieval.data_dir", settings.data_dir)
    truths = {name: ground_truth.load(root / name, name) for name in names}
    paths = {name: ground_truth.picture_paths(root / name, truths[name]) for name in names}
    with evaluation.open_evaluation(config, workdir, "retrieval") as job:
        for name in names:
            _evaluate(job, name, truths[name], *paths[name])


def _evaluate(
    job: evaluation.Evaluation,
    name: str,
    truth: ground_truth.GroundTruth,
    base_paths: list[epath.Path],
    query_paths: list[epath.Path],
) -> None:
    settings = job.config.retrieval
    root = base_paths[0].parent.as_posix()
    base = from_files(name, name, [path.as_posix() for path in base_paths], root=root)
    queries = from_files(
        f"queries of {name}", name, [path.as_posix() for path in query_paths], root=root
    )
    boxes = tuple(query.box for query in truth.queries)
    for path, box in zip(queries.paths, boxes, strict=True):
        _check_box(path, box)
    ranking = rank(_represent(job, base, None), _represent(job, queries, boxes))
    scores = {}
    counts = {}
    for difficulty in ground_truth.DIFFICULTIES:
        values, counts[difficulty] = score(ranking, truth, difficulty)
        if not counts[difficulty]:
            metrics.log(
                f"{name}: no query has a picture to be found at the difficulty {difficulty}"
            )
        for metric, value in values.items():
            scores[f"retrieval/{difficulty}_{metric}"] = value
    protocol = {
        "protocol": settings.protocol,
        "image_size": _image_size(job.config),
        "num_database": base.num_examples,
        "num_queries": queries.num_examples,
        "ground_truth": store.digest(truth),
    }
    job.record(Result(name, scores, protocol, {"queries_with_positives": counts}))
    _draw(job, base, queries, truth, ranking)


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


def _image_size(config: ml_collections.ConfigDict) -> int:
    if config.retrieval.protocol == "thesis":
        return config.data.image_size
    return config.retrieval.image_size


def _represent(job: evaluation.Evaluation, source: Source, boxes: tuple | None) -> np.ndarray:
    """L2-normalized representations [N, F] by the configured protocol."""
    size, protocol = _image_size(job.config), job.config.retrieval.protocol
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
        rows = job.encoder.features(source, cut, shapes=shapes, need_all=True)
        total = total + _unit(rows.feature)
    return _unit(total).astype(np.float32)


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
        raise UserError(f"the box {box} of the ground truth lies outside of {files.shown(path)}")


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _draw(
    job: evaluation.Evaluation,
    base: Source,
    queries: Source,
    truth: ground_truth.GroundTruth,
    ranking: np.ndarray,
) -> None:
    """Draws the first results of the first queries, to `<data set>_<query>.png` and to CLU."""
    if not parallel.is_primary():
        return
    drawn: dict[str, np.ndarray] = {}
    for i, query in enumerate(truth.queries[: job.config.retrieval.pictures]):
        first = ranking[i, :_RESULTS]
        right, junk = (set(part) for part in ground_truth.positives_and_junk(query, "medium"))
        marks = ["right" if j in right else "junk" if j in junk else "wrong" for j in first]
        (whole,) = input_pipeline.load_images(queries, [i])
        picture = pictures.draw_ranking(
            whole, input_pipeline.load_images(base, first.tolist()), marks, query.box
        )
        shown = files.shown(query.name)
        path = job.folder / f"{base.dataset}_{_shortened(shown, i)}.png"
        with files.write_errors(path):
            pictures.save(picture, path)
        drawn[f"{base.dataset}/{shown}"] = picture[None]
    if drawn:
        with contextlib.closing(job.writer()) as writer:
            writer.write_images(job.step or 0, drawn)
        metrics.log(f"first results of {len(drawn)} queries drawn into {files.shown(job.folder)}")


def _shortened(name: str, number: int) -> str:
    """A name that leaves room for more in the 255 bytes of a file name."""
    return name if len(name.encode()) <= 150 else f"{name[:30]}_{number}"

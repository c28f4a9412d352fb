"""What only graded similarity can show about an encoder: distances by overlap, and figures.

The job `diagnostics` measures pairs of views (`gsjax.evaluate.pairs`), draws nearest neighbors and
maps images to the plane.
"""

import atexit
import contextlib
import json
import os
import shutil
import tempfile
import warnings
from types import ModuleType

import ml_collections
import numpy as np

from gsjax.data import input_pipeline, sources, transforms
from gsjax.data.source import Source
from gsjax.evaluate import evaluation, nearest, pairs, pictures
from gsjax.evaluate.evaluation import Result
from gsjax.evaluate.features import Features
from gsjax.methods.base import Method
from gsjax.runtime import files, metrics, parallel

_RESULTS = 8  # drawn per query
_UMAP_NEIGHBORS = 15  # of each image in the map; umap-learn's default


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """The job `diagnostics`: pairs of views, nearest neighbors and a map of the test split."""
    with evaluation.open_evaluation(config, workdir, "diagnostics") as job:
        bank, source = _open(config.data)
        trained = job.pretrained()
        drawn = pairs.draw(job, trained, source, config.diagnostics.num_images)
        job.record(_result(config, trained.method, source, drawn))
        transform = transforms.central(config.data.image_size)
        chosen = None if len(drawn.indices) == source.num_examples else np.sort(drawn.indices)
        rows = job.encoder.features(source, transform, chosen)
        if config.diagnostics.neighbors:
            known = job.encoder.features(bank, transform) if bank else rows
            _draw_neighbors(job, bank or source, known.decoded(), source, rows.decoded())
        _write_map(job, source, rows.decoded())


def _open(data: ml_collections.ConfigDict) -> tuple[Source | None, Source]:
    """Opens the labeled split, if any, and the images to use: the test split, or else all."""
    if data.labeled_split:
        return sources.open_labeled(data)
    return None, sources.open_source(data, data.test_split or data.split)


def _result(
    config: ml_collections.ConfigDict, method: Method, source: Source, drawn: pairs.Pairs
) -> Result:
    graded = pairs.graded_settings(config)
    scores, details = pairs.measure(drawn, graded)
    protocol = {
        "pictures": source.name,
        "version": source.version,
        "num_images": len(drawn.indices),
        "seed": config.seed,
        "augment": config.augment.to_dict(),
        "distance": method.distance,
        "batch_norm": "inference",
        "similarity": config.similarity.measure,
        "psi": f"min({graded.measure} / {graded.threshold:g}, 1)",
        "psi_from": "the run" if method.is_graded else "the defaults: the run has no psi",
    }
    return Result(source.dataset, scores, protocol, details)


def _draw_neighbors(
    job: evaluation.Evaluation,
    bank: Source,
    known: Features,
    source: Source,
    asked: Features,
) -> None:
    """Draws the nearest neighbors of the first image of each class, to a file and to CLU."""
    places = _first_of_classes(source, asked)[: job.config.diagnostics.neighbors]
    own = asked.indices[places] if bank is source else None
    found = neighbors(known, asked.feature[places], own)
    if not parallel.is_primary():
        return
    lines = []
    for place, similar in zip(places, found, strict=True):
        (query,) = input_pipeline.load_images(source, [asked.indices[place]])
        images = input_pipeline.load_images(bank, known.indices[similar].tolist())
        label, others = asked.label[place], known.label[similar]
        marks, words = [""] * len(similar), ["query"] + [""] * len(similar)
        if source.labeled:
            marks = ["right" if other == label else "wrong" for other in others]
            words = [_class_name(source, number) for number in (label, *others)]
        lines.append(pictures.draw_ranking(query, images, marks, words=words))
    picture = pictures.stack(lines)
    path = job.folder / "neighbors.png"
    with files.write_errors(path):
        pictures.save(picture, path)
    with contextlib.closing(job.writer()) as writer:
        writer.write_images(job.step or 0, {"neighbors": picture[None]})
    metrics.log(f"nearest neighbors of {len(lines)} pictures drawn into {path}")


def neighbors(
    known: Features, queries: np.ndarray, own: np.ndarray | None = None
) -> list[np.ndarray]:
    """Finds the positions in `known` of the up to 8 rows most similar to each query [N, F].

    The best come first. `own` [N] holds the indices of the queries themselves if they are among the
    known images; these are excluded.
    """
    if own is None:
        return list(nearest.find(known.feature, queries, min(_RESULTS, len(known.indices))))
    found = nearest.find(known.feature, queries, min(_RESULTS + 1, len(known.indices)))
    others = [row[known.indices[row] != index] for row, index in zip(found, own, strict=True)]
    return [row[:_RESULTS] for row in others]


def _first_of_classes(source: Source, rows: Features) -> np.ndarray:
    """Positions of the first image of each class, ascending; without labels, all positions."""
    if not source.labeled:
        return np.arange(len(rows.indices))
    return np.sort(np.unique(rows.label, return_index=True)[1])


def _class_name(source: Source, label: int) -> str:
    return source.class_names[label] if source.class_names else str(label)


def _write_map(job: evaluation.Evaluation, source: Source, rows: Features) -> None:
    """Writes `map.json`: positions in the plane, labels and class names (null if there are none).

    If there can be no map, says why. An older map, of another encoder, is removed in any case.
    """
    if not parallel.is_primary():
        return
    path = job.folder / "map.json"
    with files.write_errors(path):
        path.unlink(missing_ok=True)
    if len(rows.indices) <= _UMAP_NEIGHBORS:
        metrics.log(
            f"no map: {len(rows.indices)} pictures are too few, it needs {_UMAP_NEIGHBORS + 1}"
        )
        return
    try:
        places = embed_in_plane(rows.feature, job.config.seed)
    except ImportError as error:
        metrics.log(f"no map: {error}; pip install 'gsjax[report]' brings what it needs")
        return
    columns = {
        "x": [round(float(x), 3) for x in places[:, 0]],
        "y": [round(float(y), 3) for y in places[:, 1]],
        "label": rows.label.tolist() if source.labeled else None,
        "class_names": list(source.class_names or ()) if source.labeled else None,
    }
    with files.write_errors(path):
        files.write_text(path, json.dumps(columns) + "\n")
    metrics.log(f"map of {len(places)} pictures written to {path}")


def _import_umap() -> ModuleType:
    """Imports umap-learn (extra `report`), which compiles for seconds and caches the result.

    numba, its compiler, cannot be imported if it can write neither to the package nor to the home
    folder, as in a container run by another user; then it gets a temporary folder.

    Raises:
      ImportError: umap-learn is not installed.
    """
    if os.path.expanduser("~") == "~":  # no home folder: numba would create one named ~ here
        _cache_for_numba()
    try:
        import umap
    except RuntimeError:
        _cache_for_numba()
        import umap
    return umap


def _cache_for_numba() -> None:
    import numba

    folder = tempfile.mkdtemp(prefix="gsjax_numba_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    numba.config.CACHE_DIR = folder  # type: ignore[attr-defined]


def embed_in_plane(representations: np.ndarray, seed: int) -> np.ndarray:
    """UMAP (McInnes et al. 2018) by cosine distance: float32 [N, F], N > 15 -> [N, 2].

    Raises:
      ImportError: umap-learn is not installed.
    """
    umap = _import_umap()
    # A fixed seed needs a single thread; umap-learn warns if it has to choose that itself.
    mapper = umap.UMAP(n_neighbors=_UMAP_NEIGHBORS, metric="cosine", random_state=seed, n_jobs=1)
    with warnings.catch_warnings():
        # Similar images can leave the initial layout undetermined; it is random then.
        warnings.filterwarnings("ignore", "Spectral initiali.ation failed", UserWarning)
        return mapper.fit_transform(np.asarray(representations, np.float32))

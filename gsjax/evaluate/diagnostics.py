"""What only graded similarity can show about an encoder: distances by overlap, and figures.

The job `diagnostics` measures pairs of views (`gsjax.evaluate.pairs`), draws nearest neighbors and
maps images to the plane.
"""

import atexit
import functools
import json
import os
import shutil
import tempfile
import warnings
from types import ModuleType
from typing import Any

import ml_collections
import numpy as np

from gsjax.data import input_pipeline, sources, transforms
from gsjax.data.source import Source
from gsjax.evaluate import evaluation, nearest, pairs, pictures
from gsjax.evaluate.encoder import Encoder
from gsjax.evaluate.evaluation import Result
from gsjax.evaluate.features import Features
from gsjax.runtime import metrics, parallel

_RESULTS = 8  # drawn per query
_UMAP_NEIGHBORS = 15  # of each image in the map; umap-learn's default


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """The job `diagnostics`: pairs of views, nearest neighbors and a map of the test split."""
    with evaluation.open_evaluation(config, workdir, "diagnostics", heads=True) as job:
        job.record_all(Diagnostics(config))


class Diagnostics:
    """Measures pairs of views, draws nearest neighbors, maps images; an `Evaluator`."""

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        """Opens the images: the test split, or else all.

        Their neighbors come from the labeled split if there is one.
        """
        self._config, data = config, config.data
        self._bank: Source | None = None
        if data.labeled_split:
            self._bank, self._source = sources.open_labeled(data)
        else:
            self._source = sources.open_source(data, data.test_split or data.split)

    def __call__(self, encoder: Encoder) -> list[Result]:
        """Measures `diagnostics/...` as `pairs.summarize` does, with figures and `map.json`."""
        config, source = self._config, self._source
        drawn = pairs.draw(encoder, config, source, config.diagnostics.num_images)
        scores, details = pairs.measure(drawn, pairs.graded_settings(config))
        transform = transforms.of_config(config)
        chosen = None if len(drawn.indices) == source.num_examples else np.sort(drawn.indices)
        rows = encoder.features(source, transform, chosen).decoded()
        figures = {}
        if config.diagnostics.neighbors:
            bank, known = source, rows
            if self._bank:
                bank, known = self._bank, encoder.features(self._bank, transform).decoded()
            lines = draw_neighbors(bank, known, source, rows, config.diagnostics.neighbors)
            figures = {"neighbors": pictures.stack(lines)} if lines else {}
        protocol = self._protocol(encoder, len(drawn.indices))
        plane = functools.partial(map_in_plane, source, rows, config.seed)
        return [Result(source.dataset, scores, protocol, details, figures, {"map.json": plane})]

    def _protocol(self, encoder: Encoder, num_images: int) -> dict[str, Any]:
        config, source = self._config, self._source
        graded = pairs.graded_settings(config)
        assert encoder.pretrained is not None  # or no pairs could have been drawn
        method = encoder.pretrained.method
        return {
            "pictures": source.name,
            "version": source.version,
            "num_images": num_images,
            "seed": config.seed,
            "augment": config.augment.to_dict(),
            "crops": config.crops.to_dict(),
            "distance": method.distance,
            "batch_norm": "inference",
            "similarity": config.similarity.measure,
            "form": config.similarity.form,
            "psi": f"min({graded.measure} / {graded.threshold:g}, 1)",
            "psi_from": "the run" if method.is_graded else "the defaults: the run has no psi",
        }


def draw_neighbors(
    bank: Source, known: Features, source: Source, queries: Features, num_queries: int
) -> list[np.ndarray]:
    """Draws the nearest neighbors of the first image of each class; only on the primary host.

    Args:
      bank: the images searched; `source` itself if there are no others.
      known: representations of the bank.
      source: the images whose neighbors are sought.
      queries: their representations.
      num_queries: maximum number of figures.

    Returns:
      A figure uint8 [H, W, 3] per query.
    """
    places = _first_of_classes(source, queries)[:num_queries]
    own = queries.indices[places] if bank is source else None
    found = neighbors(known, queries.feature[places], own)
    if not parallel.is_primary():
        return []
    lines = []
    for place, similar in zip(places, found, strict=True):
        (query,) = input_pipeline.load_images(source, [queries.indices[place]])
        images = input_pipeline.load_images(bank, known.indices[similar].tolist())
        label, others = queries.label[place], known.label[similar]
        marks, words = [""] * len(similar), ["query"] + [""] * len(similar)
        if source.labeled:
            marks = ["right" if other == label else "wrong" for other in others]
            words = [_class_name(source, number) for number in (label, *others)]
        lines.append(pictures.draw_ranking(query, images, marks, words=words))
    return lines


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


def map_in_plane(source: Source, rows: Features, seed: int) -> str | None:
    """Returns JSON with positions in the plane, labels and class names (null if there are none).

    If there can be no map, returns None.
    """
    if len(rows.indices) <= _UMAP_NEIGHBORS:
        metrics.log(f"no map: it needs {_UMAP_NEIGHBORS + 1} images, not {len(rows.indices)}")
        return None
    try:
        places = embed_in_plane(rows.feature, seed)
    except ImportError as error:
        metrics.log(f"no map: {error}; pip install 'gsjax[report]' installs what it needs")
        return None
    columns = {
        "x": [round(float(x), 3) for x in places[:, 0]],
        "y": [round(float(y), 3) for y in places[:, 1]],
        "label": rows.label.tolist() if source.labeled else None,
        "class_names": list(source.class_names or ()) if source.labeled else None,
    }
    metrics.log(f"map of {len(places)} images drawn")
    return json.dumps(columns) + "\n"


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

"""Distance of two views by the overlap of their crops, compared with graded similarity's target.

The loss asks for a distance of 1 - psi (thesis, eq. 7); without graded similarity, for 0.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from scipy import stats

from gsjax import losses, similarity
from gsjax.config import defaults
from gsjax.crops import Crops, of_batch
from gsjax.data import input_pipeline
from gsjax.data.source import Source
from gsjax.errors import UserError
from gsjax.evaluate import features
from gsjax.evaluate.encoder import Encoder
from gsjax.methods.base import Method
from gsjax.runtime import metrics, parallel
from gsjax.train import step

_BINS = 20  # of the overlap; exactly 0 and exactly 1 have additional bins of their own
_EDGES = np.arange(_BINS + 1) / _BINS
_QUANTILES = (10, 25, 50, 75, 90)  # of the distances in a bin, in percent


class Pairs(NamedTuple):
    """V views of each of n images, the W global ones first.

    Attributes:
      indices: int64 [n] indices of the images in the source.
      boxes: float32 [n, V, 4] crop boxes.
      anchor: float64 [n, V, D], of length 1, of `Method.embed`.
      target: float64 [n, W, D], of length 1, likewise.
    """

    indices: np.ndarray
    boxes: np.ndarray
    anchor: np.ndarray
    target: np.ndarray


def draw(
    encoder: Encoder, config: ml_collections.ConfigDict, source: Source, num_images: int
) -> Pairs:
    """Draws the views of each of some images, as in training, and embeds them.

    Crops and augmentations are a function of the seed and an image's position in the draw, not of
    the number of devices or the batches.

    Args:
      encoder: the encoder with its heads.
      config: the whole configuration.
      source: the images.
      num_images: number of images, drawn without repetition, so at most those of the source;
        rounded down to equal batches, by less than the number of batches.

    Raises:
      UserError: there are fewer than two images, one cannot be decoded, embeddings are not
        finite, or the heads are missing.
    """
    features.check_hosts(source)
    hosts, host = jax.process_count(), jax.process_index()
    num_images = min(num_images, source.num_examples)
    num_steps = math.ceil(num_images / encoder.batch_size)
    local = num_images // num_steps // hosts
    if local * hosts * num_steps < 2:
        raise UserError(f"{source.name}: a comparison needs at least two images")
    if encoder.pretrained is None:
        raise UserError("the encoder has no heads: only a checkpoint of gsjax has them")
    method, params, extra = encoder.pretrained
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.batch_size = local * hosts
    mesh = encoder.mesh
    embed_fn = _create_embed_fn(config, method, mesh)
    _, key = step.keys(config)
    # Rows that pad the devices' shares are cut off again.
    missing = -local % (mesh.devices.size // hosts)
    batches = input_pipeline.train_batches(
        source, config, 0, num_steps, host, hosts, local_views=True
    )
    progress = metrics.Progress("pairs of views", num_steps, inner=True)
    parts = []
    with contextlib.closing(batches), contextlib.closing(progress):
        for i, batch in enumerate(batches):
            place = np.arange(local, dtype=np.int32) + (i * hosts + host) * local
            crops = of_batch(batch)
            images = {name: _padded(part.images, missing) for name, part in crops.items()}
            inputs = parallel.shard([images, _padded(place, missing)], mesh)
            outputs = embed_fn(params, extra, *inputs, key)
            embedded = [features.local_rows(output)[:local] for output in outputs]
            boxes = np.concatenate([part.boxes for part in crops.values()], axis=1)
            parts.append(parallel.gather((batch["index"], boxes, *embedded)))
            progress.update(i + 1)
    indices, boxes, anchor, target = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not (np.isfinite(anchor).all() and np.isfinite(target).all()):
        raise UserError(f"embeddings of {source.name} are not finite: the encoder is broken")
    return Pairs(indices, boxes, _unit(anchor), _unit(target))


def graded_settings(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the `similarity` settings that define psi; for a run without psi, the defaults.

    The defaults are IoA with the default threshold.
    """
    if config.similarity.measure != "none":
        return config.similarity
    settings = defaults.get_config().similarity
    assert settings.measure == "ioa"  # as in the baseline's graded counterpart
    return settings


def measure(
    pairs: Pairs, settings: ml_collections.ConfigDict
) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns scores and details of the pairs, as `summarize` does; `settings` define psi."""
    of_targets = pairs.boxes[:, : pairs.target.shape[1]]
    psi = similarity.pairwise(pairs.boxes, of_targets, settings.measure, settings.threshold)
    ioa = similarity.pairwise(pairs.boxes, of_targets, "ioa", 1.0)
    rows = losses.pairs(pairs.anchor.shape[1], pairs.target.shape[1])
    return summarize(
        pairs.anchor, pairs.target, np.asarray(ioa[:, *rows]), np.asarray(psi[:, *rows])
    )


def summarize(
    anchor: np.ndarray, target: np.ndarray, ioa: np.ndarray, psi: np.ndarray
) -> tuple[dict[str, float], dict[str, Any]]:
    """Compares the distances of views with the target of graded similarity, 1 - psi.

    Every view is compared with every other global view, so two global views count in both
    directions, each with its own overlap. A negative pair is a view and that target of the next
    image.

    Args:
      anchor: [n, V, D] of length 1.
      target: [n, W, D] of length 1.
      ioa: [n, P] IoA of view v to view w for the pairs (v, w) of `gsjax.losses.pairs`.
      psi: [n, P] graded similarity, likewise.

    Returns:
      The scores `diagnostics/...`:
        calibration_error: mean |distance - (1 - psi)|;
        rank_correlation: Spearman's, of IoA and distance; 0 if either is constant;
        embedding_std_sqrt_d: sqrt(D) times the standard deviation of a coordinate of the normalized
          embeddings, averaged over coordinates: about 1 on the whole sphere, 0 at collapse;
        positive_distance, negative_distance: means.
      The details, with None as the value of an empty bin:
        ioa_histogram, psi_histogram: counts in 20 equal bins of [0, 1];
        calibration: for 20 equal bins of (0, 1), with a bin for exactly 0 before and one for
          exactly 1 after them, `ioa_low` and `ioa_high`, `count`, and of the distances `mean` and
          quantiles `q10` to `q90`; `target` is the mean of 1 - psi.
    """
    v, w = losses.pairs(anchor.shape[1], target.shape[1])
    distance = np.linalg.norm(anchor[:, v] - target[:, w], axis=-1).ravel()
    negative = np.linalg.norm(anchor[:, v] - np.roll(target, 1, axis=0)[:, w], axis=-1)
    views = target.reshape(-1, target.shape[-1])
    overlap, psi = (column.astype(np.float64).ravel() for column in (ioa, psi))
    scores = {
        "calibration_error": np.mean(np.abs(distance - (1 - psi))),
        "rank_correlation": _rank_correlation(overlap, distance),
        "embedding_std_sqrt_d": np.mean(np.std(views, axis=0)) * math.sqrt(views.shape[1]),
        "positive_distance": np.mean(distance),
        "negative_distance": np.mean(negative),
    }
    details = {
        "ioa_histogram": _histogram(overlap),
        "psi_histogram": _histogram(psi),
        "calibration": _calibration(overlap, distance, 1 - psi),
    }
    return {f"diagnostics/{name}": float(value) for name, value in scores.items()}, details


def _calibration(overlap: np.ndarray, distance: np.ndarray, asked: np.ndarray) -> dict[str, list]:
    overlap = _rounded(overlap)
    number = np.clip(np.searchsorted(_EDGES, overlap, side="right"), 1, _BINS)
    number = np.where(overlap <= 0, 0, np.where(overlap >= 1, _BINS + 1, number))
    inside = [number == i for i in range(_BINS + 2)]

    def column(values: np.ndarray, statistic: Callable) -> list:
        return [float(statistic(values[rows])) if rows.any() else None for rows in inside]

    quantiles = {
        f"q{q}": column(distance, lambda values, q=q: np.percentile(values, q)) for q in _QUANTILES
    }
    return {
        "ioa_low": [0.0, *_EDGES.tolist()],
        "ioa_high": [*_EDGES.tolist(), 1.0],
        "count": [int(rows.sum()) for rows in inside],
        "mean": column(distance, np.mean),
        **quantiles,
        "target": column(asked, np.mean),
    }


def _histogram(values: np.ndarray) -> list[int]:
    return np.histogram(_rounded(values), _EDGES)[0].tolist()


def _rounded(values: np.ndarray) -> np.ndarray:
    """Overlaps of small images lie on bin edges: 0.7 in float32 is less than 0.7."""
    return np.round(values, 6)


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return stats.spearmanr(one, other).statistic


def _create_embed_fn(config: ml_collections.ConfigDict, method: Method, mesh: Mesh) -> Callable:
    """Compiles (params, extra, images per size, place [B], key) -> ([B, V, D], [B, W, D]).

    `place` is an image's position in the draw. The outputs are anchors and targets.
    """

    def embed_views(params, extra, views):
        num_images, num_views = views.shape[:2]
        flat = views.swapaxes(0, 1).reshape(-1, *views.shape[2:])
        return [
            part.reshape(num_views, num_images, -1).swapaxes(0, 1)
            for part in method.embed(params, extra, flat)
        ]

    def embed(params, extra, images, place, key):
        crops = {name: Crops(part, None) for name, part in images.items()}
        views = step.augment_views(crops, key, place, config)
        embedded = [embed_views(params, extra, part) for part in views.values()]
        return jnp.concatenate([anchors for anchors, _ in embedded], axis=1), embedded[0][1]

    batch = P(parallel.AXIS)
    return parallel.data_parallel(
        embed, mesh, in_specs=(P(), P(), batch, batch, P()), out_specs=batch
    )


def _padded(rows: np.ndarray, missing: int) -> np.ndarray:
    return np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1), mode="edge")


def _unit(rows: np.ndarray) -> np.ndarray:
    """Scales to length 1 along the last axis; a zero row stays zero, as in the losses."""
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-30)

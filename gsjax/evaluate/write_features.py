"""The job `features`: representations of images, for use in other programs."""

import hashlib
import re

import ml_collections
import numpy as np

from gsjax.data import sources, transforms
from gsjax.data.paths import encoded
from gsjax.evaluate import evaluation, store
from gsjax.runtime import files, metrics, parallel

_LONGEST = 50  # characters of a file name: up to 200 of the 255 bytes that file systems allow


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Writes `workdir/features/<name>.npz`.

    It holds, for N images in the order of the data set, `feature` float32 [N, F], `label` int32
    [N] (-1 if there is none) or [N, C], `index` int64 [N], `path` [N] (empty if an image is not a
    file) and `valid` bool [N], False for an image that cannot be decoded. A path is UTF-8 in every
    locale; bytes that are not become surrogates, as in Python file names (PEP 383).
    """
    settings = config.features
    data = config.data.copy_and_resolve_references()
    split, labeled = settings.split, False
    with data.unlocked():
        if settings.source:
            data.source, data.data_dir = settings.source, settings.data_dir
        else:
            split = split or data.split
            labeled = split in (data.labeled_split, data.test_split) and split != data.split
    with evaluation.open_evaluation(config, workdir, "features") as job:
        source = sources.open_source(data, split, labeled)
        rows = job.encoder.features(source, transforms.of_config(config))
        path = job.workdir / "features" / f"{settings.name or _name(source.dataset, split)}.npz"
        if path.exists():
            metrics.log(f"replacing {files.shown(path)}")
        if parallel.is_primary():
            paths = [_portable(path) for path in source.paths] or [""] * len(rows.indices)
            arrays = {
                "feature": rows.feature.astype(np.float32),
                "label": rows.label,
                "index": rows.indices,
                "path": np.array(paths),
                "valid": rows.valid,
            }
            with files.write_errors(path):
                store.write_npz(path, arrays)
        metrics.log(
            f"wrote {len(rows.valid)} x {rows.feature.shape[1]} features to {files.shown(path)}"
        )


def _name(dataset: str, split: str) -> str:
    """A file name for the features of a split: letters and digits, of limited length."""
    whole = f"{dataset}_{split}"
    name = re.sub(r"\W+", "_", whole).strip("_") or "features"
    if len(name) > _LONGEST:
        digest = hashlib.sha256(whole.encode(errors="backslashreplace")).hexdigest()
        name = f"{name[:_LONGEST]}_{digest[:12]}"
    return name


def _portable(path: str) -> str:
    return encoded(path).decode("utf-8", "surrogateescape")

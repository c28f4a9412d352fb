"""The job `features`: representations of pictures, for use in other programs."""

import re

import ml_collections
import numpy as np

from gsjax import files, metrics, parallel
from gsjax.data import sources, transforms
from gsjax.evaluate import evaluation, store


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Writes `workdir/features/<name>.npz`.

    It holds, for N pictures in the order of the data set, `feature` float32 [N, F], `label` int32
    [N] (-1 where there is none) or [N, C], `index` int64 [N], `path` [N] (empty where a picture is
    no file) and `valid` bool [N], False for a picture that cannot be decoded.
    """
    settings = config.features
    data = config.data.copy_and_resolve_references()
    split, labelled = settings.split, False
    with data.unlocked():
        if settings.source:
            data.source, data.data_dir = settings.source, settings.data_dir
        else:
            split = split or data.split
            labelled = split in (data.labelled_split, data.test_split) and split != data.split
    with evaluation.open_evaluation(config, workdir, "features") as job:
        source = sources.open_source(data, split, labelled)
        rows = job.features(source, transforms.central(config.data.image_size))
        name = settings.name or re.sub(r"\W+", "_", f"{source.dataset}_{split}").strip("_")
        path = job.workdir / "features" / f"{name}.npz"
        if path.exists():
            metrics.say(f"replaces {path}")
        if parallel.is_primary():
            arrays = {
                "feature": rows.feature.astype(np.float32),
                "label": rows.label,
                "index": rows.indices,
                "path": np.array(source.paths or [""] * len(rows.indices)),
                "valid": rows.valid,
            }
            with files.told(path):
                store.write_npz(path, arrays)
        metrics.say(f"{len(rows.valid)} x {rows.feature.shape[1]} features written to {path}")

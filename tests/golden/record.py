"""What gsjax computes, to a file: first losses of the configs, scores of the evaluation jobs.

    python tests/golden/record.py losses float64 FILE [NAME ...]
    python tests/golden/record.py scores DATA FILE

`losses` trains every config, or those named, at small width on the built-in photographs and writes
the loss of each step. `scores` trains one small encoder in float64 and runs every evaluation job on
it; DATA holds cifar10 in TFDS form and retrieval/rmini. The committed files name the commit that
recorded them, under "commit"; `tests/test_golden.py` compares.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
from absl import logging

from gsjax import jobs
from gsjax.config import settings
from gsjax.runtime import parallel

ROOT = pathlib.Path(__file__).parent.parent.parent
SMALL = {
    "platform": "cpu",
    "num_steps": "12",
    "batch_size": "16",
    "remat": "false",
    "data.source": "photos",
    "data.split": "train",
    "data.labeled_split": "",
    "data.image_size": "16",
    "encoder.width": "4",
    "projector.hidden_dim": "32",
    "projector.out_dim": "16",
    "predictor.hidden_dim": "8",
    "checkpoint.every_steps": "1000",
    "log.every_steps": "1",
    "log.example_pairs": "0",
}
ENCODER = SMALL | {
    "encoder.dtype": "float64",
    "data.labeled_split": "train",
    "data.test_split": "test",
    "knn.baselines": "true",
}
EVALUATIONS = {
    "knn": {"knn.preset": "instdisc"},
    "linear": {"linear.num_epochs": "1", "linear.learning_rate": "3"},
    "transfer": {
        "transfer.datasets": "cifar10",
        "transfer.max_examples": "300",
        "transfer.max_iterations": "100",
    },
    "retrieval": {"retrieval.datasets": "rmini", "retrieval.protocol": "aspect"}
    | {"retrieval.image_size": "96"},
    "diagnostics": {"diagnostics.num_images": "200"},
}


def losses(dtype, names=()):
    """{config: the losses of its first twelve steps}."""
    found = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        if names and path.stem not in names:
            continue
        config = settings.load(str(path))
        settings.override(config, SMALL | {"encoder.dtype": dtype})
        with tempfile.TemporaryDirectory() as workdir:
            jobs.JOBS["pretrain"].load()(settings.check(config), workdir)
            lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
        found[path.stem] = [json.loads(line)["train/loss"] for line in lines]
    return found


def scores(data):
    """{job: the scores of one encoder}; `features` are the means of those of `embed`."""
    config = settings.load(None)
    settings.override(config, ENCODER)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        jobs.JOBS["pretrain"].load()(settings.check(config), folder)
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        found["monitor"] = {
            f"{record['step']} {name}": value
            for record in map(json.loads, lines)
            for name, value in record.items()
            if name.startswith("knn/")
        }
        for job, changes in EVALUATIONS.items():
            places = {
                "transfer.data_dir": data,
                "retrieval.data_dir": str(pathlib.Path(data) / "retrieval"),
            }
            evaluated = settings.of_evaluation(folder, None, places | changes)
            jobs.JOBS[job].load()(settings.check(evaluated), folder)
            entries = json.loads((workdir / "results" / f"{job}.json").read_text())
            found[job] = {
                name: value for entry in entries for name, value in entry["scores"].items()
            }
        changes = {"embed.split": "test", "embed.format": "npz"}
        evaluated = settings.of_evaluation(folder, None, changes)
        jobs.JOBS["embed"].load()(settings.check(evaluated), folder)
        (file,) = (workdir / "embeddings").glob("*.npz")
        found["features"] = np.load(file)["embedding"].astype(float).mean(axis=0).tolist()
    return found


def main():
    logging.set_verbosity(logging.ERROR)
    what, *rest = sys.argv[1:]
    parallel.start(rest[0] if what == "losses" else "float64")
    parallel.choose_platform("cpu")
    found = losses(rest[0], rest[2:]) if what == "losses" else scores(rest[0])
    pathlib.Path(rest[1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

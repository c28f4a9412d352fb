"""Evaluation jobs on a small trained encoder, run in this process."""

from trainings import PLAIN

from gsjax.config import settings
from gsjax.evaluate import results
from gsjax.train.pretrain import pretrain

MODEL = {
    "encoder.name": "toy",
    "encoder.width": "32",
    "data.image_size": "16",
    "projector.hidden_dim": "16",
    "projector.out_dim": "8",
}
TRAINING = MODEL | {
    **PLAIN,
    "num_steps": "2",
    "batch_size": "32",
    "knn.baselines": "false",
    "log.example_pairs": "0",
}
QUICK = {
    "features.batch_size": "512",
    "linear.num_epochs": "1",
    "linear.batch_size": "1000",
    "transfer.max_iterations": "30",
}


def train(workdir):
    """Pre-trains in two steps."""
    config = settings.load(None)
    settings.override(config, TRAINING)
    pretrain(settings.check(config), str(workdir))


def evaluate(job, workdir, **overrides):
    """Runs a job and returns its results."""
    changes = QUICK | {key.replace("__", "."): str(text) for key, text in overrides.items()}
    if changes.get("checkpoint.load") == "none":
        changes |= MODEL
    config = settings.check(settings.of_evaluation(str(workdir), None, changes))
    job.run(config, str(workdir))
    name = job.__name__.rsplit(".", 1)[1]
    return results.read(workdir / "results" / f"{name}.json")

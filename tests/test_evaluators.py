"""Every evaluator keeps the contract, for an encoder from anywhere."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from test_extensions import Patches
from tiny_folders import write_classes, write_retrieval
from trainings import small_config

from gsjax.evaluate import store
from gsjax.evaluate.diagnostics import Diagnostics
from gsjax.evaluate.encoder import Encoder, Pretrained
from gsjax.evaluate.evaluation import Result
from gsjax.evaluate.knn import KNN
from gsjax.evaluate.linear import Linear
from gsjax.evaluate.retrieval import Retrieval
from gsjax.evaluate.transfer import Transfer
from gsjax.methods import base
from gsjax.methods.simclr import SimCLR
from gsjax.runtime import parallel
from gsjax.train import step
from gsjax.train.finetune import Finetune

EVALUATORS = {
    "knn": lambda config, folder: KNN(config),
    "linear": lambda config, folder: Linear(config, folder),
    "finetune": lambda config, folder: Finetune(config, folder),
    "transfer": lambda config, folder: Transfer(config),
    "retrieval": lambda config, folder: Retrieval(config),
    "diagnostics": lambda config, folder: Diagnostics(config),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_classes(folder / "three", 20)
    write_retrieval(folder)
    return small_config(
        knn__k="5", linear__num_epochs="1", finetune__num_epochs="1",
        finetune__batch_size="64", finetune__fraction="0.1", diagnostics__num_images="40",
        diagnostics__neighbors="2", transfer__datasets="three", transfer__data_dir=str(folder),
        retrieval__datasets="toy", retrieval__data_dir=str(folder),
    )  # fmt: skip


def create_encoder(config, devices):
    """An encoder that no checkpoint of gsjax holds, with heads."""
    mesh = parallel.create_mesh(devices, jax.devices()[:devices])
    projector = base.create_projector(config, last_bn_scale=True)
    method = SimCLR({"encoder": Patches(8), "projector": projector}, config)
    create = jax.jit(lambda: method.init(jax.random.key(3), config.data.image_size))
    params, extra = jax.device_put(create(), parallel.replicated(mesh))
    return Encoder(
        method.networks["encoder"],
        method.encoder_variables(params, extra),
        step.pixels(config),
        mesh,
        {"name": "patches"},
        batch_size=64,
        pretrained=Pretrained(method, params, extra),
    )


@pytest.mark.parametrize("job", EVALUATORS)
def test_results_can_be_recorded_and_depend_on_the_encoder_alone(job, config, tmp_path):
    evaluator = EVALUATORS[job](config, epath.Path(tmp_path / job))
    encoder = create_encoder(config, 4)
    before = encoder.digest
    results = list(evaluator(encoder))
    assert results and all(isinstance(result, Result) for result in results)
    for result in results:
        json.dumps([result.protocol, result.details], allow_nan=False)
        assert result.scores and np.isfinite(list(result.scores.values())).all()
        assert all(name.startswith(f"{job}/") for name in result.scores)
        assert all(figure.dtype == np.uint8 for figure in result.figures.values())
    assert store.digest(encoder.variables) == before
    again = list(EVALUATORS[job](config, epath.Path(tmp_path / job))(encoder))
    assert [result.scores for result in again] == [result.scores for result in results]


# These two always train on all devices of the process.
@pytest.mark.parametrize("job", [job for job in EVALUATORS if job not in ("linear", "finetune")])
def test_scores_do_not_depend_on_the_number_of_devices(job, config, tmp_path):
    scores = []
    for devices in (1, 4):
        (result,) = EVALUATORS[job](config, epath.Path(tmp_path))(create_encoder(config, devices))
        scores.append(dict(result.scores))
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)

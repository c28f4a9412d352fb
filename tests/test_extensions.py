"""A method, an encoder and an evaluation that a test adds, through the tables alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainings import small_config, trained

from gsjax import losses
from gsjax.config import defaults, settings
from gsjax.config.schema import free, shapes
from gsjax.data import sources, transforms
from gsjax.errors import UserError
from gsjax.evaluate import evaluation, results
from gsjax.evaluate.evaluation import Result
from gsjax.jobs import JOBS, Job
from gsjax.methods import METHODS, MethodRow, base
from gsjax.models import ENCODERS, EncoderRow
from gsjax.models.outputs import Outputs
from gsjax.runtime import files
from gsjax.train.pretrain import pretrain


class Toy(base.Method):
    """Pulls two views together and counts its steps; enough to tell whether all is wired."""

    def init(self, key, image_size):
        params, extra = super().init(key, image_size)
        return params, extra | {"updates": jnp.zeros(())}

    def loss(self, params, extra, views, boxes, keys, progress):
        batch_stats, outputs = extra["batch_stats"], []
        for x in base.each_view(views):
            (_, z), batch_stats = self.forward(params, batch_stats, x)
            outputs.append(z)
        z, targets = jnp.stack(outputs, axis=1), jnp.stack(outputs[:2], axis=1)
        loss = self.config.toy.weight * losses.siamese(z, targets, None)
        return loss, (extra | {"batch_stats": batch_stats}, base.metrics(targets, self.psi(boxes)))

    def after_update(self, params, extra, progress):
        return extra | {"updates": extra["updates"] + 1}

    def embed(self, params, extra, images):
        (_, z), _ = self.forward(params, extra["batch_stats"], images, train=False)
        return z, z


def create_method(encoder, config):
    projector = base.create_projector(config, last_bn_scale=True)
    return Toy({"encoder": encoder, "projector": projector}, config)


def check_toy(config):
    if config.toy.weight > 5:
        yield f"toy.weight is {config.toy.weight:g}; that is too much"


class Patches(nn.Module):
    """A convolution without overlap, and no BatchNorm."""

    features: int

    @nn.compact
    def __call__(self, images, train, keys=None):
        maps = nn.relu(nn.Conv(self.features, (4, 4), strides=4, padding="VALID")(images))
        return Outputs(jnp.mean(maps, axis=(1, 2)), maps)


def create_encoder(settings, remat):
    return Patches(settings.patch_features)


def spread(config, workdir):
    """The job `spread`: the standard deviation of the representations."""

    def evaluator(encoder):
        source = sources.open_source(config.data, "test")
        rows = encoder.features(source, transforms.central(config.data.image_size))
        yield Result(source.dataset, {"spread/std": config.spread.scale * rows.feature.std()}, {})

    with evaluation.open_evaluation(config, workdir, "spread") as job:
        job.record_all(evaluator)


ADDED = {
    "toy.weight": shapes(1.0, "of the loss"),
    "encoder.patch_features": shapes(8, "of the convolution", low=1),
    "spread.scale": free(1.0, "of the result"),
}


@pytest.fixture(autouse=True)
def _rows(monkeypatch):
    """The rows, as CONTRIBUTING.md describes them."""

    def own(prefix):
        return {key: setting for key, setting in ADDED.items() if key.startswith(prefix)}

    method = MethodRow(
        __name__, "a toy", own("toy"), check_toy, "create_method",
        label="Toy", linear_learning_rate=1.0,
    )  # fmt: skip
    encoder = EncoderRow(__name__, "patches", own("encoder"), function="create_encoder")
    job = Job(__name__, "the spread of the representations", own("spread"), function="spread")
    for table, name, row in (
        (METHODS, "toy", method), (ENCODERS, "patches", encoder), (JOBS, "spread", job),
    ):  # fmt: skip
        monkeypatch.setitem(table, name, row)
    for key, setting in ADDED.items():
        monkeypatch.setitem(defaults.SETTINGS, key, setting)


def configured(**changes):
    return small_config(method="toy", encoder__name="patches", **changes)


def test_they_train_resume_and_are_evaluated(tmp_path):
    config = configured(toy__weight="2", num_steps="6", checkpoint__every_steps="3")
    whole = pretrain(config, str(tmp_path))
    assert float(whole.extra["updates"]) == 6
    assert whole.params["encoder"]["Conv_0"]["kernel"].shape == (4, 4, 3, 8)
    rows = [row["train/loss"] for row in trained(tmp_path) if "train/loss" in row]
    assert len(rows) == 6 and np.isfinite(rows).all()

    folder = files.absolute(str(tmp_path))
    (folder / "checkpoints" / "6").rmtree()
    resumed = pretrain(config, str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)

    for job in ("knn", "spread"):
        evaluated = settings.of_evaluation(str(tmp_path), None, {"spread.scale": "2"})
        JOBS[job].load()(settings.check(evaluated), str(tmp_path))
        (result,) = results.read(folder / "results" / f"{job}.json")
        assert result["method"] == "toy" and result["encoder"]["patch_features"] == 8
        assert all(np.isfinite(score) and score > 0 for score in result["scores"].values())


def test_their_settings_are_checked():
    with pytest.raises(UserError, match="toy.weight is 9; that is too much"):
        configured(toy__weight="9")
    with pytest.raises(UserError, match="toy.weight: 'much' is not a number"):
        configured(toy__weight="much")
    with pytest.raises(UserError, match="encoder.patch_features is 0; it must be at least 1"):
        configured(encoder__patch_features="0")

"""NaN, infinity and collapse in a training: the state before is kept, and the user is told."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from test_step import batch_of
from test_step import small_config as step_config
from trainings import records, small_config

from gsjax import methods
from gsjax.crops import Crops
from gsjax.data import input_pipeline, sources
from gsjax.errors import UserError
from gsjax.runtime import interrupts, parallel
from gsjax.train import optimizers, step
from gsjax.train.collapse import CollapseWarning
from gsjax.train.pretrain import pretrain
from gsjax.train.state import create_state, update
from gsjax.train.watch import NotFinite, Watch

# The parameters leave the range of float32 after some steps.
DIVERGING = {
    "optimizer__name": "sgd",
    "optimizer__learning_rate": "1e6",
    "optimizer__weight_decay": "10",
    "optimizer__scaling": "none",
    "schedule__warmup_epochs": "0",
    "data__labeled_split": "",
    "data__test_split": "",
}


def saved(workdir, number):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(workdir / "checkpoints" / str(number) / "default")


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_diverging_run_stops_with_its_images_and_the_last_good_state(tmp_path):
    config = small_config(**DIVERGING, checkpoint__every_steps="1000")
    with pytest.raises(UserError, match=r"^step \d+: \w+ not finite") as told:
        pretrain(config, str(tmp_path / "run"))
    found = json.loads((tmp_path / "run/not_finite.json").read_text())
    assert str(told.value).startswith(f"step {found['step']}: {found['metric']} not finite")
    assert steps(tmp_path / "run") == [found["step"] - 1]
    source = sources.open_source(config.data, config.data.split)
    batches = input_pipeline.train_batches(source, config, found["step"] - 1, config.num_steps)
    assert found["images"] == next(batches)["index"].tolist()
    batches.close()
    # The same state as a run has that saves after every step.
    often = small_config(**DIVERGING, checkpoint__every_steps="1", checkpoint__keep="20")
    with pytest.raises(UserError):
        pretrain(often, str(tmp_path / "often"))
    assert steps(tmp_path / "often") == list(range(1, found["step"]))
    good, same = (saved(tmp_path / name, found["step"] - 1) for name in ("run", "often"))
    assert jax.tree.structure(good) == jax.tree.structure(same)
    for a, b in zip(jax.tree.leaves(good), jax.tree.leaves(same), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)
    # A second start meets the same step again, and still nothing is lost.
    with pytest.raises(UserError, match=rf"^step {found['step']}:"):
        pretrain(config, str(tmp_path / "run"))
    assert steps(tmp_path / "run") == [found["step"] - 1]


@pytest.mark.parametrize("devices", [1, 2])
def test_no_step_after_a_nan_changes_the_state(devices):
    config = step_config("simclr", "ioa", "lars", "float32")
    mesh = parallel.create_mesh(config.batch_size, jax.devices()[:devices])
    optimizer = optimizers.create_optimizer(config, lambda count: 0.1)
    method = methods.create_method(config)
    key = jax.random.key(4)
    state = step.create_state_fn(config, method, optimizer, mesh)(jax.random.key(3))
    train_step = step.create_train_step(config, method, optimizer, mesh, 10, 10)
    good = batch_of(config)
    images, boxes = good["global"]
    boxes = boxes.copy()
    boxes[-1] = np.nan  # of one image, on the last device
    bad = {"global": Crops(images, boxes)}
    watch = Watch(interrupts.Request(), mesh)
    batches = ({**batch, "index": np.arange(16)} for batch in (good, bad, good))
    fed = (parallel.shard(batch, mesh) for batch in watch.feed(batches, "global"))
    state, values = train_step(state, next(fed), key)
    watch.after_step(1, values)
    before = jax.device_get(state)
    assert before.finite and before.step == 1
    state, values = train_step(state, next(fed), key)
    assert np.isnan(values["loss"])
    watch.after_step(2, values)  # looks at the step before, which was good
    state, values = train_step(state, next(fed), key)
    assert np.isfinite(values["loss"])
    with pytest.raises(NotFinite) as error:
        watch.after_step(3, values)
    assert (error.value.step, error.value.metric) == (2, "loss")
    after = jax.device_get(state)
    assert not after.finite
    for a, b in zip(
        jax.tree.leaves(before.replace(finite=after.finite)), jax.tree.leaves(after), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", ["loss", "grads", "params", "extra"])
def test_each_alone_is_seen(bad):
    """Also where the optimizer does not hand it on to the parameters."""
    one = {"x": jnp.ones(3)}
    values = {"loss": jnp.ones(()), "grads": one, "extra": one}
    if bad in values:
        values[bad] = jax.tree.map(lambda x: x * jnp.nan, values[bad])
    optimizer = optax.sgd(np.inf) if bad == "params" else optax.set_to_zero()
    state = create_state(one, one, optimizer)
    after, metrics = update(state, **values, optimizer=optimizer)
    assert not metrics["finite"] and not after.finite
    assert after.step == 0
    for kept in (after.params, after.extra):
        np.testing.assert_array_equal(kept["x"], 1)


def test_collapse_is_told_once_in_words(tmp_path, capsys):
    """One picture many times, without augmentation: the embeddings are one point."""
    (tmp_path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    for i in range(32):
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    config = small_config(
        data__source="folder", data__data_dir=str(tmp_path / "pictures"), data__split="",
        data__labeled_split="", data__test_split="", augment__min_scale="1", augment__flip="0",
        augment__jitter="0", augment__gray="0", num_steps="8",
    )  # fmt: skip
    pretrain(config, str(tmp_path / "run"))
    told = [line for line in capsys.readouterr().out.splitlines() if "collapsed" in line]
    assert len(told) == 1
    assert told[0].startswith("warning: at step 3 ")
    assert max(row["train/embedding_std"] for row in records(tmp_path / "run")) < 0.03


def test_healthy_spread_is_not_called_collapse(capsys):
    warning = CollapseWarning(small_config(projector__out_dim="128"))
    for done, spread in enumerate([0.001, 0.001, 0.04, 0.001, 0.001, 0.03]):
        warning.check(done, spread)
    assert capsys.readouterr().out == ""


def test_a_collapse_that_comes_again_is_not_told_again(capsys):
    warning = CollapseWarning(small_config(projector__out_dim="128"))
    for done, spread in enumerate([0.001] * 3 + [0.04] + [0.001] * 3):
        warning.check(done, spread)
    assert capsys.readouterr().out.count("collapsed") == 1


@pytest.mark.parametrize(
    ("method", "measure", "scale"),
    [("simclr", "ioa", True), ("simclr", "none", False), ("simsiam", "ioa", False)],
)
def test_a_collapse_is_told_with_what_helps_this_method(capsys, method, measure, scale):
    config = small_config()
    config.method, config.similarity.measure = method, measure
    warning = CollapseWarning(config)
    for done in range(3):
        warning.check(done, 0.001)
    assert ("similarity.scale=0.5" in capsys.readouterr().out) == scale


def test_a_signal_after_the_last_step_is_heard_on_all_hosts(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    request = interrupts.Request()
    watch = Watch(request, parallel.create_mesh(jax.device_count()))
    assert watch.last_signal() == 0
    request.signal = 15
    assert watch.last_signal() == watch.signal == 15

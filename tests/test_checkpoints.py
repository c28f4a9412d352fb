"""Checkpoints: what `checkpoint.load` can name, and what does not fit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from gsjax import checkpoints, defaults
from gsjax.errors import UserError


def state(value):
    return {"step": jnp.asarray(value), "weights": jnp.full((3, 2), value, jnp.float32)}


@pytest.fixture
def saved(tmp_path):
    """A directory with checkpoints of the steps 4 and 6."""
    saved = checkpoints.Checkpoints(epath.Path(tmp_path), keep=2, keep_every=0)
    for step in (4, 6):
        saved.save(step, state(step))
    saved.close()
    return epath.Path(tmp_path)


def restore(folder, load, target=None):
    opened = checkpoints.Checkpoints(folder, keep=2, keep_every=0)
    try:
        return jax.device_get(opened.restore(load, state(0) if target is None else target))
    finally:
        opened.close()


@pytest.mark.parametrize(("load", "step"), [("latest", 6), ("6", 6), ("4", 4)])
def test_load_names_a_checkpoint(saved, load, step):
    restored = restore(saved, load)
    np.testing.assert_array_equal(restored["weights"], np.full((3, 2), step, np.float32))


def test_path_begins_a_new_run_and_goes_on_in_an_old_one(saved, tmp_path):
    path = str(saved / "checkpoints" / "4")
    assert restore(epath.Path(tmp_path / "new"), path)["step"] == 4
    assert restore(saved, path)["step"] == 6


def test_empty_directory_is_a_fresh_start(tmp_path):
    for load in ("latest", "none"):
        assert restore(epath.Path(tmp_path), load)["step"] == 0


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ("none", "holds checkpoints up to step 6"),
        ("5", r"no checkpoint of step 5 in .*4, 6"),
    ],
)
def test_what_cannot_be_loaded_is_named(saved, load, expected):
    with pytest.raises(UserError, match=expected):
        restore(saved, load)


def test_missing_path_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint .*nowhere"):
        restore(epath.Path(tmp_path), str(tmp_path / "nowhere"))


def test_checkpoint_of_another_model_is_named(saved):
    other = {"step": jnp.asarray(0), "weights": jnp.zeros((5, 2))}
    with pytest.raises(UserError, match="is no checkpoint of this model"):
        restore(saved, "latest", other)


def test_old_checkpoints_go_and_multiples_stay(tmp_path):
    saved = checkpoints.Checkpoints(epath.Path(tmp_path), keep=1, keep_every=4)
    for step in range(1, 8):
        saved.save(step, state(step))
    saved.close()
    left = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert left == {4, 7}


def test_claim_writes_the_config_and_refuses_another(tmp_path):
    config = defaults.get_config()
    folder = epath.Path(tmp_path / "run")
    checkpoints.claim(folder, config)
    assert json.loads((folder / "config.json").read_text())["config"]["seed"] == 5
    config.log.every_steps = 3
    checkpoints.claim(folder, config)
    config.seed = 6
    with pytest.raises(UserError, match="seed: 5 -> 6"):
        checkpoints.claim(folder, config)


def test_claim_names_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir .*file"):
        checkpoints.claim(epath.Path(tmp_path / "file" / "run"), defaults.get_config())

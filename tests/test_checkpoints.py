"""Checkpoints: what `checkpoint.load` can name, and what does not fit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from clu.metric_writers import MultiWriter
from etils import epath

from gsjax.config import defaults
from gsjax.errors import UserError
from gsjax.runtime import checkpoints, ownership, parallel, saved_state


def state(value):
    return {"step": jnp.asarray(value), "weights": jnp.full((3, 2), value, jnp.float32)}


@pytest.fixture
def saved(tmp_path):
    """A directory with checkpoints of the steps 4 and 6."""
    saved = checkpoints.Checkpoints(epath.Path(tmp_path), keep=2, keep_every=0)
    for step in (4, 6):
        saved.save(step, state(step), MultiWriter([]))
    return epath.Path(tmp_path)


def restore(folder, load, target=None):
    opened = checkpoints.Checkpoints(folder, keep=2, keep_every=0)
    target = state(0) if target is None else target
    return jax.device_get(opened.restore(load, jax.eval_shape(lambda: target)))


def test_a_training_goes_on_from_the_newest(saved):
    restored = restore(saved, "latest")
    np.testing.assert_array_equal(restored["weights"], np.full((3, 2), 6, np.float32))


@pytest.mark.parametrize(("load", "step"), [("latest", 6), ("6", 6), ("4", 4)])
def test_an_evaluation_takes_any(saved, load, step):
    assert checkpoints.find(saved, load) == saved / "checkpoints" / str(step)


def test_an_evaluation_names_the_steps_that_are_there(saved):
    with pytest.raises(UserError, match=r"no checkpoint for step 7 in .*\(available: 4, 6\)"):
        checkpoints.find(saved, "7")


@pytest.mark.parametrize("size", [0, 20])
def test_what_cannot_be_read_after_its_check_is_told_in_one_line(tmp_path, size):
    """The metadata are there, the arrays are not whole: Orbax tells its store's whole layout."""
    weights = {"weights": jnp.arange(4096, dtype=jnp.float32)}
    checkpoints.Checkpoints(epath.Path(tmp_path), 1, 0).save(3, weights, MultiWriter([]))
    path = tmp_path / "checkpoints" / "3"
    arrays = list(path.glob("default/ocdbt.process_0/d/*"))
    assert arrays
    for file in arrays:
        file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError) as refusal:
        saved_state.read(epath.Path(path), jax.tree.map(ocp.utils.to_shape_dtype_struct, weights))
    assert str(refusal.value).startswith(f"{path} cannot be restored: ")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600


def test_a_save_compiles_nothing_for_the_devices_of_one_process(tmp_path, caplog):
    mesh = parallel.create_mesh(4, jax.devices()[:4])
    state = jax.device_put({"x": np.arange(34 * 4.0).reshape(34, 4)}, parallel.replicated(mesh))
    folder = epath.Path(tmp_path) / "1"
    folder.mkdir()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        saved_state.write(folder, state)
    assert "Compiling" not in caplog.text
    found = saved_state.read(folder, state)["x"]
    assert found.sharding == state["x"].sharding
    for shard in found.addressable_shards:
        np.testing.assert_array_equal(shard.data, state["x"])


def test_path_begins_a_new_run_and_goes_on_in_an_old_one(saved, tmp_path):
    path = str(saved / "checkpoints" / "4")
    assert restore(epath.Path(tmp_path / "new"), path)["step"] == 4
    assert restore(saved, path)["step"] == 6


def test_empty_directory_is_a_fresh_start(tmp_path):
    for load in ("latest", "none"):
        assert restore(epath.Path(tmp_path), load) is None


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ("none", "has checkpoints up to step 6"),
        ("6", r"resumes from the newest checkpoint.*to branch off.*checkpoints/6"),
    ],
)
def test_what_cannot_be_loaded_is_named(saved, load, expected):
    with pytest.raises(UserError, match=expected):
        restore(saved, load)


def test_missing_path_is_named(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at .*nowhere"):
        restore(epath.Path(tmp_path), str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (jnp.zeros((5, 2)), r"weights is float32\[3, 2\], but should be float32\[5, 2\]"),
        (jnp.zeros((3, 2), jnp.float16), r"float32\[3, 2\], but should be float16\[3, 2\]"),
        (None, r"weights is float32\[3, 2\], but should be absent"),
    ],
)
def test_checkpoint_of_another_model_is_named(saved, weights, expected):
    with pytest.raises(UserError, match="is not a checkpoint of this model: .*" + expected):
        restore(saved, "latest", {"step": jnp.asarray(0), "weights": weights})


def test_folder_that_is_no_checkpoint_is_named(saved):
    with pytest.raises(UserError, match="is not a complete checkpoint"):
        restore(epath.Path(saved / "new"), str(saved))


def test_old_checkpoints_go_and_multiples_stay(tmp_path):
    saved = checkpoints.Checkpoints(epath.Path(tmp_path), keep=1, keep_every=4)
    for step in range(1, 8):
        saved.save(step, state(step), MultiWriter([]))
    left = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert left == {4, 7}


def test_claim_writes_the_config_and_refuses_another(tmp_path):
    config = defaults.get_config()
    folder = epath.Path(tmp_path / "run")
    facts = {"num_images": 10, "hosts": None}
    ownership.claim(folder, config, facts)
    assert json.loads((folder / "config.json").read_text())["config"]["seed"] == 5
    config.log.every_steps = 3
    ownership.claim(folder, config, facts)
    config.batch_size = 64  # nothing has been trained yet
    ownership.claim(folder, config, facts)
    (folder / "checkpoints" / "3").mkdir(parents=True)  # its manifest may come back
    config.seed = 6
    with pytest.raises(UserError, match="seed: 5 -> 6; num_images: 10 -> 11"):
        ownership.claim(folder, config, facts | {"num_images": 11})


def test_claim_names_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir .*file"):
        ownership.claim(epath.Path(tmp_path / "file" / "run"), defaults.get_config(), {})


def test_a_directory_that_was_moved_keeps_its_owner(tmp_path, capsys):
    folder = epath.Path(tmp_path) / "run"
    config, facts = defaults.get_config(), {"num_images": 60}
    ownership.claim(folder, config, facts)
    ownership.renew(folder, config, facts)
    assert capsys.readouterr().out == ""
    folder.rename(tmp_path / "moved")
    ownership.renew(folder, config, facts)
    assert f"warning: {folder} was moved or deleted" in capsys.readouterr().out
    for file in ("run", "moved"):
        assert json.loads((tmp_path / file / "config.json").read_text())["data"] == facts
    checkpoints.Checkpoints(folder, 2, 0).save(4, state(4), MultiWriter([]))
    ownership.claim(folder, config, facts)
    with pytest.raises(UserError, match="num_images: 60 -> 61"):
        ownership.claim(folder, config, {"num_images": 61})

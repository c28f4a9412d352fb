"""Work directories whose names some library would interpret."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from clu.metric_writers import MultiWriter
from etils import epath
from trainings import command, final_state, finish, flags, records, wait_for

from gsjax.errors import UserError
from gsjax.runtime import checkpoints, files, lock, saved_state
from gsjax.sweep import runs

NAMES = [
    "a b", "[ab]", "a[0-9]b", "a*b", "**", "a?b", "{a,b}", "$HOME", "~", "%41", "#a", "a:b", "é",
    "日本", "-a", "a\nb", "'\"", "a;b|c&d", "memory:", "s3:", "ocdbt.process_0", "x" * 200,
]  # fmt: skip
REFUSED = {
    "a\\b": "a backslash",
    "\\": "a backslash",
    "gs:": "a folder named gs:",
    "caf\udce9": "not valid UTF-8",
}


def state(value):
    return {"step": jnp.asarray(value), "weights": jnp.full((3, 2), value, jnp.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_any_name_is_restored(name, tmp_path):
    folder = epath.Path(tmp_path) / name / "run"
    for step in (4, 6):
        checkpoints.Checkpoints(folder, 2, 0).save(step, state(step), MultiWriter([]))
    restored = checkpoints.Checkpoints(folder, 2, 0).restore("latest", state(0))
    np.testing.assert_array_equal(restored["weights"], np.full((3, 2), 6, np.float32))
    assert checkpoints.find(folder, "latest") == folder / "checkpoints" / "6"
    with lock.held(folder, "pretrain"):
        files.write_text(folder / "a.json", "{}")
        assert files.with_suffix(folder, ".json") == [folder / "a.json"]


def test_a_pattern_in_the_name_takes_nothing_from_a_neighbor(tmp_path):
    """As a pattern, `run?` is also the name of the folder beside it."""
    for value, name in enumerate(("run1", "run?"), 1):
        path = epath.Path(tmp_path) / name / "4"
        path.mkdir(parents=True)
        saved_state.write(path, state(value))
    index = epath.Path(tmp_path) / "run?" / "4" / "default" / "manifest.ocdbt"
    assert b"run1" not in index.read_bytes()
    restored = saved_state.read(epath.Path(tmp_path) / "run?" / "4", state(0))
    np.testing.assert_array_equal(restored["weights"], np.full((3, 2), 2, np.float32))


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_cannot_work_is_refused_at_the_start(name, tmp_path):
    with pytest.raises(UserError, match="checkpoints cannot be stored") as error:
        checkpoints.Checkpoints(epath.Path(tmp_path) / name, 2, 0)
    assert REFUSED[name] in str(error.value)
    str(error.value).encode()  # can be printed anywhere
    # A run that was moved there: read as little as written.
    with pytest.raises(UserError, match="checkpoints cannot be stored"):
        saved_state.read(epath.Path(tmp_path) / name / "4", state(0))


def test_what_cannot_be_restored_does_not_count_as_saved(tmp_path, monkeypatch):
    """Orbax merges nothing where it finds nothing, and only logs that."""
    monkeypatch.setattr(saved_state._LiteralPath, "glob", lambda self, pattern: iter(()))
    saved = checkpoints.Checkpoints(epath.Path(tmp_path), 2, 0)
    with pytest.raises(UserError, match="was written, but cannot be restored"):
        saved.save(4, state(4), MultiWriter([]))
    assert checkpoints.saved_steps(epath.Path(tmp_path)) == []


def test_a_checkpoint_without_its_arrays_does_not_count_as_saved(tmp_path, monkeypatch):
    """As where shared storage does not show what another host has written."""
    save = ocp.Checkpointer.save

    def lose(self, path, *args, **options):
        save(self, path, *args, **options)
        for file in path.glob("ocdbt.process_0/d/*"):
            file.unlink()

    monkeypatch.setattr(ocp.Checkpointer, "save", lose)
    with pytest.raises(UserError, match="was written, but cannot be restored: .* no arrays"):
        checkpoints.Checkpoints(epath.Path(tmp_path), 2, 0).save(4, state(4), MultiWriter([]))
    assert checkpoints.saved_steps(epath.Path(tmp_path)) == []


def test_a_refusal_comes_before_data_are_read(tmp_path):
    process = command(tmp_path / "a\\b", *flags(data__source="folder", data__data_dir="/nowhere"))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.startswith("gsjax: error: checkpoints cannot be stored in ")
    assert errors.count("\n") == 1 and "data" not in output


@pytest.mark.slow
def test_the_whole_way_in_an_odd_folder(tmp_path):
    workdir = tmp_path / "[a] {b}*?\n%41 é#" / "run[1]"
    finish(command(workdir, *flags()))
    assert jax.tree.leaves(final_state(workdir))
    finish(command(workdir, "--job=knn"))
    finish(command(workdir, "--job=linear", "--config.linear.num_epochs=1"))
    finish(command(workdir, "--job=diagnostics", "--config.features.batch_size=256"))
    output = finish(command(workdir.parent, "--job=report"))
    assert "index.html" in output
    run = runs.read(epath.Path(workdir))
    assert set(run.results) == {"knn", "linear", "diagnostics"}
    assert records(workdir)[-1]["step"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("way", ["moved", "deleted"])
def test_a_training_whose_directory_goes_loses_nothing(way, tmp_path):
    workdir = tmp_path / "run"
    process = command(workdir, *flags(num_steps="400", checkpoint__every_steps="100"))
    wait_for(process, lambda: (workdir / "metrics.jsonl").exists() and len(records(workdir)) > 3)
    if way == "moved":
        workdir.rename(tmp_path / "other")
    else:
        shutil.rmtree(workdir)
    output = finish(process)
    assert f"warning: {workdir} was moved or deleted" in output
    assert checkpoints.saved_steps(epath.Path(workdir))[-1] == 400
    again = finish(command(workdir, *flags(num_steps="400", checkpoint__every_steps="100")))
    assert "trained encoder" in again
    assert "top1" in finish(command(workdir, "--job=knn"))

"""A work directory in a bucket: TensorFlow's file system, as for gs://, over a local folder."""

import json

import numpy as np
import pytest
from etils.epath import backend, gpath
from trainings import of_pictures, records, small_config, write_pictures

from gsjax.evaluate import knn, linear
from gsjax.runtime import files
from gsjax.train.pretrain import pretrain


@pytest.fixture(autouse=True)
def _bucket(monkeypatch):
    """Every path is read and written as one of a bucket."""
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, None, backend.tf_backend)
    monkeypatch.setattr(files, "is_remote", lambda path: True)


@pytest.mark.slow
def test_training_evaluations_and_resume(tmp_path, capsys):
    pictures = write_pictures(tmp_path / "pictures")
    overrides = of_pictures(pictures, log__example_pairs="2", checkpoint__every_steps="3")
    overrides |= {"num_steps": "6", "linear__batch_size": "40", "linear__num_epochs": "2"}
    config = small_config(**overrides)
    run = tmp_path / "run"
    pretrain(config, str(run))
    assert [row["step"] for row in records(run)] == [*range(1, 7), 6]
    assert (run / "examples.png").exists() and not list(run.glob("*.lock"))
    knn.run(config, str(run))
    linear.run(config, str(run))
    assert json.loads((run / "results/knn.json").read_text())[0]["scores"]
    with np.load(run / "linear" / "head.npz") as head:
        assert head["kernel"].shape[1] == 2
    capsys.readouterr()
    knn.run(config, str(run))
    assert capsys.readouterr().out.count("taken from an earlier job") == 2
    (run / "checkpoints" / "6" / "manifest.sha256").unlink()
    pretrain(config, str(run))
    assert "from step 3" in capsys.readouterr().out
    assert [row["step"] for row in records(run)] == [*range(1, 7), 6]
    assert not list(run.rglob("*.new"))

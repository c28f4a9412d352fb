"""Training with local views and a restricted overlap: psi, the run's files and its messages."""

import jax.numpy as jnp
import numpy as np
from PIL import Image
from trainings import records, small_config

from gsjax import methods
from gsjax.runtime import parallel
from gsjax.train.pretrain import pretrain


def test_psi_of_views_by_hand():
    """A view inside another one has psi 1 to it; the other one less."""
    whole, half, corner, apart = [0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 2, 2], [0, 6, 8, 2]
    config = small_config(similarity__threshold="0.5", crops__local_views="2")
    method = methods.create_method(config)
    boxes = {
        "global": jnp.array([[whole, half]], jnp.float32),
        "local": jnp.array([[corner, apart]], jnp.float32),
    }
    expected = [[1, 1], [1, 1], [1, 1], [1, 0]]
    np.testing.assert_array_equal(method.psi(boxes)[0], expected)
    boxes["global"] = boxes["global"][:, ::-1]
    np.testing.assert_array_equal(method.psi(boxes)[0], np.array(expected)[[1, 0, 2, 3], ::-1])
    # Of the area of the whole, the corner covers 1/16; as the global view, it has psi 1/8.
    boxes = {"global": jnp.array([[corner, whole]], jnp.float32)}
    np.testing.assert_allclose(method.psi(boxes)[0], [[1, 1], [1 / 8, 1]])


def test_a_run_with_local_views_and_a_range_that_cannot_be_met(tmp_path, capsys):
    """Of every method, tests/test_step.py has the step."""
    config = small_config(
        num_steps="3", crops__local_views="3", crops__local_size="12", crops__overlap="ioa",
        crops__min_overlap="1",
    )  # fmt: skip
    parallel.start("float32")
    pretrain(config, str(tmp_path))
    rows = [row for row in records(tmp_path) if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert all(row["train/psi_mean"] < 1 for row in rows)
    picture = np.asarray(Image.open(tmp_path / "examples.png"))
    assert picture.shape[1] == 6 * (160 + 12) + 12
    # Both directions are 1 for equal boxes alone, which are rare among a hundred draws.
    share = rows[0]["train/crops_outside"]
    assert share > 0.5
    warning = (
        f"warning: at step 1, {share:.2%} of the images have no two views with ioa from 1 to 1"
    )
    assert capsys.readouterr().out.count(warning) == 1

"""First losses of the configs and scores of the evaluations, as an earlier commit gave them.

`tests/golden/record.py` records them. What changes a number on purpose records anew, and says so.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import FAST_COMPILATION

GOLDEN = pathlib.Path(__file__).parent / "golden"
QUICK = ["simclr_gs_cifar10"]


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["values"]


def record(*arguments):
    environment = os.environ | {"XLA_FLAGS": FAST_COMPILATION}
    command = [sys.executable, str(GOLDEN / "record.py"), *map(str, arguments)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def check_losses(tmp_path, dtype, steps, tolerance, names):
    expected = golden(f"losses_{dtype}")
    record("losses", dtype, tmp_path / "losses.json", *(names or expected))
    found = json.loads((tmp_path / "losses.json").read_text())
    assert found.keys() == set(names or expected)
    for name, losses in found.items():
        np.testing.assert_allclose(
            losses[:steps], expected[name][:steps], rtol=tolerance, atol=tolerance, err_msg=name
        )


def test_first_losses_in_float64(tmp_path):
    check_losses(tmp_path, "float64", 12, 1e-9, QUICK)


@pytest.mark.slow
def test_first_losses_of_every_recorded_config_in_float64(tmp_path):
    check_losses(tmp_path, "float64", 12, 1e-9, ())


@pytest.mark.slow
def test_first_losses_of_every_recorded_config_in_float32(tmp_path):
    check_losses(tmp_path, "float32", 4, 1e-4, ())


@pytest.mark.slow
def test_scores_of_every_evaluation(shared_data, tmp_path):
    """To all digits that tables print; those of the diagnostics are not in percent."""
    record("scores", shared_data, tmp_path / "scores.json")
    found, expected = json.loads((tmp_path / "scores.json").read_text()), golden("scores")
    np.testing.assert_allclose(found.pop("features"), expected.pop("features"), rtol=1e-5)
    assert found.keys() == expected.keys()
    for job, scores in found.items():
        digits = 4 if job == "diagnostics" else 2
        shown = [
            {name: f"{value:.{digits}f}" for name, value in part.items()}
            for part in (scores, expected[job])
        ]
        assert shown[0] == shown[1]

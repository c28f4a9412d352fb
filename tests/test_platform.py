"""The setting `platform` on a machine without accelerators, and TensorFlow's hands off them."""

import os
import subprocess
import sys

import pytest

START = """
import sys
import jax
from gsjax.runtime import parallel
from gsjax.errors import UserError
try:
    parallel.choose_platform(sys.argv[1])
except UserError as error:
    print("refused:", error)
else:
    print("takes", jax.default_backend())
"""


def started(platform, asked=None):
    """What a process says, after `platform` and with JAX_PLATFORMS, on both its outputs."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"}
    if asked is not None:
        environment["JAX_PLATFORMS"] = asked
    done = subprocess.run(
        [sys.executable, "-c", START, platform],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return done.stdout, done.stderr


def own_lines(platform, asked):
    """Standard output, and gsjax's own lines on standard error."""
    output, errors = started(platform, asked)
    return output, [line for line in errors.splitlines() if line.startswith("gsjax:")]


@pytest.fixture(scope="module")
def without_accelerator():
    if "takes cpu" not in started("auto")[0]:
        pytest.skip("this machine has an accelerator")


def test_auto_warns_in_one_line(without_accelerator):
    output, errors = started("auto")
    assert output == "takes cpu\n"
    (line,) = [line for line in errors.splitlines() if line.startswith("gsjax:")]
    assert "no accelerator found" in line
    assert "pip install 'gsjax[cuda12]'" in line and "--config.platform=cpu" in line


@pytest.mark.parametrize(("platform", "asked"), [("auto", "cpu"), ("cpu", None), ("cpu", "cpu")])
def test_the_cpu_that_was_asked_for_is_no_news(platform, asked):
    assert own_lines(platform, asked) == ("takes cpu\n", [])


def test_cpu_keeps_jax_from_looking_for_others():
    """An accelerator that cannot start, as a driver that is gone, does not matter then."""
    assert own_lines("cpu", "tpu") == ("takes cpu\n", [])


@pytest.mark.parametrize("asked", [None, "cpu"])
@pytest.mark.parametrize(("platform", "extra"), [("gpu", "cuda12"), ("tpu", "tpu")])
def test_an_accelerator_that_is_not_there_is_an_error(without_accelerator, platform, extra, asked):
    output, _ = started(platform, asked)
    assert output.startswith(f"refused: platform is {platform}, but JAX")
    assert f"found no {platform.upper()}, only cpu" in output
    assert f"pip install 'gsjax[{extra}]'" in output
    assert ("JAX_PLATFORMS=cpu" in output) == bool(asked)


@pytest.mark.parametrize("platform", ["auto", "tpu"])
def test_a_plugin_that_is_broken_is_one_line(platform):
    output, _ = started(platform, "tpu,nonsense")
    assert output.startswith("refused: JAX cannot initialize its devices with JAX_PLATFORMS=tpu,")
    assert len(output.splitlines()) == 1


def test_command_ends_with_status_2(without_accelerator, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "gsjax.main", "--workdir", str(tmp_path / "run"),
         "--config.platform=gpu"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("gsjax:")]
    assert line.startswith("gsjax: error: platform is gpu, but JAX with JAX_PLATFORMS=cpu")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


HIDDEN = """
import tensorflow as tf
from tensorflow.python.eager import context

hidden = []
original = tf.config.set_visible_devices

def recorded(devices, kind):
    hidden.append((devices, kind, context.context()._initialized))
    original(devices, kind)

tf.config.set_visible_devices = recorded
from gsjax.train import pretrain  # one module imports TensorFlow (tests/test_package.py)
assert hidden == [([], "GPU", False), ([], "TPU", False)], hidden
tf.zeros(1)
assert {device.device_type for device in tf.config.get_visible_devices()} == {"CPU"}
assert {device.device_type for device in tf.config.list_logical_devices()} == {"CPU"}
"""


def test_tensorflow_is_kept_from_accelerators_before_its_first_operation():
    subprocess.run([sys.executable, "-c", HIDDEN], check=True)

"""Out of memory: real refusals of the allocator become one line that says what to do."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FAST_COMPILATION
from PIL import Image

from gsjax.config import settings
from gsjax.data import sources, transforms
from gsjax.errors import UserError
from gsjax.evaluate import features
from gsjax.runtime import memory, parallel
from gsjax.train.memory import describe_step

HUGE = 2**21  # a matrix of so many rows and columns takes 16 TiB


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (40, 40), (30 * i, 5, 200)).save(folder / f"{i}.png")
    return folder


def sorted_outer_product(x):
    """Needs [HUGE, HUGE] floats."""
    return jnp.sort(jnp.sin(x)[:, None] * jnp.cos(x)[None, :], axis=0)[0]


def changed(**overrides):
    config = settings.load(None)
    settings.override(config, {key.replace("__", "."): str(v) for key, v in overrides.items()})
    return config


@pytest.mark.slow
def test_step_too_large_for_the_memory_ends_in_one_line(pictures, tmp_path):
    arguments = {
        "data.source": "folder", "data.data_dir": pictures, "data.split": "",
        "data.labeled_split": "", "data.test_split": "", "data.image_size": 2048,
        "batch_size": 4, "encoder.width": 32, "log.example_pairs": 0,
    }  # fmt: skip
    command = [sys.executable, "-m", "gsjax.main", "--workdir", str(tmp_path / "run")]
    command += [f"--config.{key}={value}" for key, value in arguments.items()]
    # More than the process takes by itself, and less than the step, on any machine.
    limited = ["sh", "-c", f'ulimit -v {60 * 2**20}; exec "$@"', "sh", *command]
    environment = os.environ | {"XLA_FLAGS": FAST_COMPILATION}
    done = subprocess.run(limited, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]  # XLA may have complained of a slow compilation
    assert line.startswith("gsjax: error: out of device memory: a step with batch_size=4 needs 1")
    for part in (
        " GiB per device", "remat=true", "more devices than 1", "encoder.dtype=bfloat16",
        "a smaller batch_size changes it", "Out of memory allocating",
    ):  # fmt: skip
        assert part in line


SEARCH = """
import re, resource
import numpy as np
from gsjax.errors import UserError
from gsjax.evaluate import features, knn, nearest

def rows(count, size):
    same = np.broadcast_to(np.float32(1), (count, size))
    return features.Features(same, np.zeros(count, int), np.arange(count), np.ones(count, bool))

protocol = nearest.Protocol(3, 0.0)
knn.accuracy(rows(10, 4), rows(5, 4), protocol)
taken = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**29, taken + 2**29))
try:
    knn.accuracy(rows(2**16, 2**12), rows(2**11, 2**12), protocol)
except UserError as error:
    print(error)
"""


def test_search_too_large_for_the_memory_says_its_size():
    command = [sys.executable, "-c", SEARCH]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = "out of device memory: the search among 65536 images keeps 1.0 GiB of features"
    assert done.stdout.startswith(told)


def test_figures_are_xlas():
    compiled = jax.jit(sorted_outer_product).lower(jnp.zeros(HUGE)).compile()
    text = describe_step(changed(), compiled)
    found = compiled.memory_analysis()
    assert found.temp_size_in_bytes >= 4 * HUGE**2
    whole = found.temp_size_in_bytes + 4 * HUGE + 4 * HUGE  # argument and result
    assert f"needs {whole / 2**30:.1f} GiB" in text
    assert f"{found.temp_size_in_bytes / 2**30:.1f} GiB for intermediate" in text
    assert "needs more than a device has" in describe_step(changed(), None)


def test_what_is_done_already_is_not_proposed():
    text = describe_step(changed(remat=True, encoder__dtype="bfloat16"), None)
    assert "remat" not in text and "bfloat16" not in text and "more devices" in text


def test_other_errors_pass():
    def fail(x):
        raise ValueError("RESOURCE_EXHAUSTED: not XLA's")

    with pytest.raises(jax.errors.JaxRuntimeError), memory.explain_out_of_memory(lambda: "never"):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        jax.jit(lambda x: jax.pure_callback(fail, shape, x))(1.0).block_until_ready()
    with pytest.raises(ZeroDivisionError), memory.explain_out_of_memory(lambda: "never"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("batch_size", "advice"),
    [(8, "8 images are encoded together; use a smaller features.batch_size"),
     (1, "one image is too large")],
)  # fmt: skip
def test_features_say_what_to_lower(pictures, batch_size, advice):
    config = changed(data__source="folder", data__data_dir=pictures)
    source = sources.open_source(config.data, "")
    mesh = parallel.create_mesh(1, jax.devices()[:1])

    def encode(variables, images):
        x = jnp.resize(images.astype(jnp.float32), HUGE)
        return jnp.zeros((len(images), 2)) + sorted_outer_product(x)[0]

    batch = jax.sharding.PartitionSpec(parallel.AXIS)
    encode_fn = parallel.data_parallel(
        encode, mesh, in_specs=(jax.sharding.PartitionSpec(), batch), out_specs=batch
    )
    with pytest.raises(UserError, match=advice) as caught:
        features.extract(
            encode_fn, np.zeros(1), source, transforms.central(16), batch_size, mesh, "test"
        )
    assert "\n" not in str(caught.value)

"""Memory and seconds of a step with `loss.chunks`, next to the step in a single pass.

    python tests/benchmarks/chunks.py --batch_size 32

The whole step of `configs/mocov3_vit_small_imagenet.py` (224 px) on one device, without the input
pipeline. Memory is what the compiler reports for intermediate values. The losses must agree.
"""

import argparse
import pathlib
import statistics
import time

import jax
import numpy as np

from gsjax import methods
from gsjax.config import settings
from gsjax.crops import Crops
from gsjax.runtime import parallel
from gsjax.train import optimizers, step

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "mocov3_vit_small_imagenet.py"


def prepared(chunks, batch_size):
    """(a function without arguments that trains one step and returns its loss, GiB)."""
    config = settings.load(str(CONFIG))
    settings.override(config, {"loss.chunks": str(chunks), "batch_size": str(batch_size)})
    mesh = parallel.create_mesh(batch_size, jax.devices()[:1])
    method = methods.create_method(settings.check(config))
    optimizer = optimizers.create_optimizer(config, lambda count: 1e-4, method.param_groups)
    state = step.create_state_fn(config, method, optimizer, mesh)(jax.random.key(0))
    size = config.data.image_size
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 2, size, size, 3), np.uint8)
    boxes = np.tile(np.float32([0, 0, size, size]), (batch_size, 2, 1))
    batch = parallel.shard({"global": Crops(images, boxes)}, mesh)
    train_step = step.create_train_step(config, method, optimizer, mesh, 1000, 10)
    compiled = train_step.lower(state, batch, jax.random.key(1)).compile()

    def run():
        nonlocal state
        state, metrics = compiled(state, batch, jax.random.key(1))
        return float(metrics["loss"])

    return run, compiled.memory_analysis().temp_size_in_bytes / 2**30


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--chunks", default="1,4,16", help="comma-separated, 1 first")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    chunks = [int(text) for text in arguments.chunks.split(",")]
    steps = {n: prepared(n, arguments.batch_size) for n in chunks}
    losses = {n: run() for n, (run, _) in steps.items()}
    np.testing.assert_allclose(list(losses.values()), losses[1], rtol=1e-5)
    seconds = {n: [] for n in chunks}
    for _ in range(arguments.rounds):
        for n, (run, _) in steps.items():
            began = time.perf_counter()
            run()
            seconds[n].append(time.perf_counter() - began)
    for n, (_, memory) in steps.items():
        ratios = [a / b for a, b in zip(seconds[n], seconds[1], strict=True)]
        print(
            f"loss.chunks={n:<3} {memory:.2f} GiB, {memory / steps[1][1]:.2f} of a single pass's; "
            f"{statistics.median(seconds[n]):.2f} s, {statistics.median(ratios):.2f} of its"
        )


if __name__ == "__main__":
    main()

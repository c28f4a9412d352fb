"""Seconds and memory of a training step of every method, next to SimCLR's.

    python tests/benchmarks/methods.py --width 16

The whole step of each method's CIFAR-10 config: augmentation, forward, backward and update, without
the input pipeline. The methods take turns, and the ratios are medians of those of the rounds.
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
from gsjax.methods import METHODS
from gsjax.runtime import parallel
from gsjax.train import optimizers, step

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
MIB = 2**20


def prepared(name, width, batch_size):
    """(a function without arguments that trains one step, MiB of state, MiB of temporaries)."""
    config = settings.load(str(CONFIGS / f"{name}_cifar10.py"))
    settings.override(config, {"encoder.width": str(width), "batch_size": str(batch_size)})
    mesh = parallel.create_mesh(batch_size, jax.devices()[:1])
    method = methods.create_method(settings.check(config))
    schedule = optimizers.create_schedule(config, 1000, 10)
    optimizer = optimizers.create_optimizer(config, schedule, method.param_groups)
    state = step.create_state_fn(config, method, optimizer, mesh)(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, 2, 32, 32, 3)).astype(np.uint8)
    boxes = np.tile(np.float32([0, 0, 32, 32]), (batch_size, 2, 1))
    batch = parallel.shard({"global": Crops(images, boxes)}, mesh)
    train_step = step.create_train_step(config, method, optimizer, mesh, 1000, 10)
    compiled = train_step.lower(state, batch, jax.random.key(1)).compile()
    memory = compiled.memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.extra)))

    def run():
        nonlocal state
        state, metrics = compiled(state, batch, jax.random.key(1))
        return float(metrics["loss"])

    return run, size / MIB, memory.temp_size_in_bytes / MIB


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    steps = {name: prepared(name, arguments.width, arguments.batch_size) for name in METHODS}
    seconds = {name: [] for name in steps}
    for _ in range(arguments.rounds + 2):
        for name, (run, *_) in steps.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    seconds = {name: times[2:] for name, times in seconds.items()}
    for name, (_, state, temporaries) in steps.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds["simclr"], strict=True)]
        print(
            f"{name:8} {statistics.median(seconds[name]):.3f} s  "
            f"{statistics.median(ratios):.2f} of SimCLR's  parameters, statistics and extra state "
            f"{state:.1f} MiB  temporaries {temporaries:.0f} MiB"
        )


if __name__ == "__main__":
    main()

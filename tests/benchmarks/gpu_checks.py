"""What only a GPU can show: memory, the line where it ends, whether a resumed run has equal bits.

    python tests/benchmarks/gpu_checks.py memory out_of_memory not_finite
    XLA_FLAGS=--xla_gpu_deterministic_ops=true python tests/benchmarks/gpu_checks.py bits

Needs neither TensorFlow nor CLU.

memory: the step of configs/simclr_gs_imagenet.py (ResNet-50, 224 px, 256 images): what the compiler
  says it needs for values in between, and the time it takes, in float32, bfloat16 and with `remat`.
out_of_memory: that step of 1,024 images, and the line that tells it.
bits: 20 steps of configs/simclr_gs_cifar10.py (width 16) on random pixels against the same again,
  and against 10 and, in another process, 10 more from the arrays of the first.
not_finite: a step without a finite loss, and one after it: the state stays.
precision: the loss and gradient norm of the first of those steps against the CPU's.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

import gpu_vs_torch
import jax
import numpy as np

from gsjax.errors import UserError
from gsjax.runtime import memory

SMALL = gpu_vs_torch.CONFIG.parent / "simclr_gs_cifar10.py"
STEPS = 20
TOO_MANY = 1024


def pixels(count, side):
    return np.random.default_rng(0).integers(0, 256, (count, 2, side, side, 3), np.uint8)


def show_memory():
    for dtype in ("float32", "bfloat16"):
        for remat in ("false", "true"):
            overrides = {"encoder.dtype": dtype, "remat": remat}
            _show_memory_of(f"{dtype}, remat={remat}", overrides)


def _show_memory_of(name, overrides):
    program, state, batch, key, _ = gpu_vs_torch.prepare(
        gpu_vs_torch.CONFIG, overrides, pixels(256, 224)
    )
    compiled = program.lower(state, batch, key).compile()

    def run():
        nonlocal state
        state, values = compiled(state, batch, key)
        jax.block_until_ready(values)

    taken = compiled.memory_analysis().temp_size_in_bytes / 2**30
    print(f"{name}: {taken:.1f} GiB, {gpu_vs_torch.median_ms(run):.0f} ms", flush=True)


def run_out_of_memory():
    program, state, batch, key, config = gpu_vs_torch.prepare(
        gpu_vs_torch.CONFIG, {}, pixels(TOO_MANY, 224)
    )
    compiled = None
    began = time.perf_counter()
    try:
        with memory.explain_out_of_memory(lambda: memory.describe_step(config, compiled)):
            compiled = program.lower(state, batch, key).compile()
            print(f"  compiled in {time.perf_counter() - began:.0f} s", flush=True)
            jax.block_until_ready(compiled(state, batch, key))
    except UserError as error:
        print(f"{TOO_MANY} images: gsjax: error: {error}", flush=True)


def small(devices=None):
    return gpu_vs_torch.prepare(SMALL, {"encoder.width": "16"}, pixels(128, 32), devices)


def take_steps(start, steps, out):
    """Goes on from the arrays of the file `start`, if one is named; leaves them in `out`."""
    program, state, batch, key, _ = small()
    if start:
        with np.load(start) as arrays:
            leaves = [arrays[name] for name in arrays.files]
        shardings = jax.tree.map(lambda x: x.sharding, state)
        state = jax.device_put(jax.tree.unflatten(jax.tree.structure(state), leaves), shardings)
    for _ in range(int(steps)):
        state, _ = program(state, batch, key)
    np.savez(out, *map(np.asarray, jax.tree.leaves(state)))


def largest_difference(one, other):
    with np.load(one) as a, np.load(other) as b:
        pairs = [(a[name].astype(float), b[name].astype(float)) for name in a.files]
    return max(np.abs(x - y).max() for x, y in pairs)


def compare_bits():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)

        def steps(start, count, out):
            arguments = [start and folder / start, count, folder / out]
            subprocess.run([sys.executable, __file__, "take", *map(str, arguments)], check=True)

        steps("", STEPS, "whole.npz")
        steps("", STEPS, "again.npz")
        steps("", STEPS // 2, "half.npz")
        steps("half.npz", STEPS - STEPS // 2, "resumed.npz")
        for other in ("again", "resumed"):
            difference = largest_difference(folder / "whole.npz", folder / f"{other}.npz")
            print(f"{STEPS} steps, {other}: largest difference {difference:.2g}", flush=True)


def show_not_finite():
    program, state, batch, key, _ = small()
    before = jax.device_get(state)
    batch["global"] = batch["global"]._replace(boxes=batch["global"].boxes * np.nan)
    for number in (1, 2):
        state, values = program(state, batch, key)
        print(f"step {number}: loss {float(values['loss'])}, finite {bool(values['finite'])}")
    kept = jax.tree.map(np.array_equal, before, jax.device_get(state.replace(finite=before.finite)))
    print(f"the state stays: {all(jax.tree.leaves(kept))}", flush=True)


def compare_precision():
    found = {}
    for platform in (jax.default_backend(), "cpu"):
        program, state, batch, key, _ = small(jax.devices(platform))
        _, values = program(state, batch, key)
        found[platform] = {name: float(values[name]) for name in ("loss", "grad_norm")}
    print(found, flush=True)


def main():
    parts = {
        "memory": show_memory,
        "out_of_memory": run_out_of_memory,
        "bits": compare_bits,
        "not_finite": show_not_finite,
        "precision": compare_precision,
    }
    if sys.argv[1:2] == ["take"]:
        take_steps(*sys.argv[2:])
        return
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}", flush=True)
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()

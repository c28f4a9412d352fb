"""Seconds and memory of a training step of ViT-S/16 on the CPU: gsjax and timm in PyTorch.

    pip install torch==2.13.0 torchvision timm
    python tests/benchmarks/vit_vs_timm.py --batch_size 8

Both take the same weights and images: forward, mean of the squared representations, backward,
update by SGD. First the loss and the norm of its gradient must agree. The two take turns, and the
ratio is the median of those of the rounds. Memory is that of a process of its own: the highest
resident set while it trains, minus what is resident before the first step (Linux only).
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

import numpy as np

RATE = 1e-3


def images(batch_size, size):
    """Normalized images [N, S, S, 3]."""
    return np.random.default_rng(0).normal(size=(batch_size, size, size, 3)).astype(np.float32)


def weights(name, size):
    """The initial variables of gsjax."""
    import jax

    from gsjax import models
    from gsjax.config import defaults

    config = defaults.get_config()
    config.encoder.name = name
    module = models.create_encoder(config)
    example = np.zeros((1, size, size, 3), np.float32)
    return module, jax.jit(lambda key: module.init(key, example, train=True))(jax.random.key(0))


def gsjax_step(name, x):
    """Returns a function without arguments: a step, its loss and the norm of the gradient."""
    import jax
    import jax.numpy as jnp
    import optax

    module, variables = weights(name, x.shape[1])
    x = jnp.asarray(x)

    def loss(params):
        return jnp.mean(module.apply({"params": params}, x, train=True).pooled ** 2)

    def step(params):
        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - RATE * g, params, grads), value, optax.tree.norm(grads)

    step = jax.jit(step, donate_argnums=0)
    params = variables["params"]

    def run():
        nonlocal params
        params, value, norm = jax.block_until_ready(step(params))
        return float(value), float(norm)

    return run


def timm_step(name, x):
    """As `gsjax_step`, in PyTorch."""
    import timm
    import torch

    from gsjax.models import weights as formats
    from gsjax.models.weights import names

    _, variables = weights(name, x.shape[1])
    tensors = names.to_tensors(variables, formats.family(name).module_name)
    model = timm.create_model(f"{name}_patch16_224", num_classes=0, img_size=x.shape[1])
    model.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in tensors.items()})
    model.train()
    pixels = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    params = list(model.parameters())

    def run():
        value = model(pixels).square().mean()
        grads = torch.autograd.grad(value, params)
        norm = torch.stack([grad.norm() for grad in grads]).norm()
        with torch.no_grad():
            for p, grad in zip(params, grads, strict=True):
                p.sub_(RATE * grad)
        return value.item(), norm.item()

    return run


STEPS = {"gsjax": gsjax_step, "timm": timm_step}


def resident(name):
    """A size of the resident set, in MiB: VmRSS now, VmHWM at its highest."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="vit_small", help="vit_tiny, vit_small or vit_base")
    parser.add_argument("--batch_size", type=int, default=8, help="images")
    parser.add_argument("--image_size", type=int, default=224, help="side in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="of two steps each")
    parser.add_argument("--memory_of", choices=STEPS, help="measure the memory of one side alone")
    arguments = parser.parse_args()
    x = images(arguments.batch_size, arguments.image_size)
    if arguments.memory_of:
        run = STEPS[arguments.memory_of](arguments.encoder, x)
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets what was highest
        before = resident("VmRSS")
        for _ in range(3):
            run()
        print(f"{resident('VmHWM') - before:.0f}")
        return
    runs = {name: create(arguments.encoder, x) for name, create in STEPS.items()}
    values = {name: run() for name, run in runs.items()}
    print("loss and norm of the gradient:", values)
    np.testing.assert_allclose(values["gsjax"], values["timm"], rtol=1e-4)
    seconds = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run(), run()
            seconds[name].append((time.perf_counter() - began) / 2)
    for name, times in seconds.items():
        command = [sys.executable, *sys.argv, "--memory_of", name]
        memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        print(f"{name:6} {statistics.median(times):.3f} s a step, {memory} MiB")
    ratios = [b / a for a, b in zip(seconds["gsjax"], seconds["timm"], strict=True)]
    print(f"timm / gsjax: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()

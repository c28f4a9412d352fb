"""Seconds of a SimCLR training step on the CPU: gsjax, gsjax without its kernels, PyTorch.

    pip install torch==2.13.0
    python tests/benchmarks/step_vs_torch.py --width 16

All three train a CIFAR ResNet by NT-Xent and LARS on the same normalized views: forward, backward
and update, no input pipeline and no augmentation. They take turns, and the ratios are medians of
those of the rounds. Where other programs use the processor, compare CPU seconds (of all threads)
and set OMP_WAIT_POLICY=PASSIVE, without which PyTorch's threads burn CPU while they wait.
"""

import argparse
import contextlib
import statistics
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from gsjax import methods
from gsjax.config import defaults
from gsjax.runtime import parallel
from gsjax.train import optimizers

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    sys.exit("this benchmark needs PyTorch: pip install torch==2.13.0")

LEARNING_RATE = 0.15
TEMPERATURE = 0.5
WEIGHT_DECAY = 1e-6
TRUST_COEFFICIENT = 0.001


def gsjax_step(views, width, fast):
    """Returns a function without arguments that trains one step and returns its loss."""
    config = defaults.get_config()
    config.batch_size = len(views)
    config.encoder.width = width
    config.similarity.measure = "none"
    method = methods.create_method(config)
    optimizer = optimizers.create_optimizer(config, lambda step: LEARNING_RATE)

    def step(params, extra, opt_state, views):
        boxes = {"global": jnp.zeros((len(views), 2, 4))}
        keys = jax.random.split(jax.random.key(0), len(views))  # which this encoder ignores
        gradient = jax.value_and_grad(method.loss, has_aux=True)
        (loss, (extra, _)), grads = gradient(params, extra, {"global": views}, boxes, keys, None)
        updates, opt_state = optimizer.update(lax.pmean(grads, parallel.AXIS), opt_state, params)
        return optax.apply_updates(params, updates), extra, opt_state, loss

    mesh = Mesh(np.array(jax.devices()[:1]), (parallel.AXIS,), axis_types=(AxisType.Auto,))
    specs = (P(), P(), P(), P(parallel.AXIS))
    step = parallel.data_parallel(step, mesh, in_specs=specs, out_specs=P(), donate=(0, 1, 2))
    params, extra = method.init(jax.random.key(0), views.shape[2])
    state = (params, extra, optimizer.init(params))
    views = jnp.asarray(views)
    plain = mock.patch.object(lax, "platform_dependent", lambda *x, cpu, default: default(*x))
    with contextlib.nullcontext() if fast else plain:
        step = step.lower(*state, views).compile()

    def run():
        nonlocal state
        *state, loss = step(*state, views)
        return float(jax.block_until_ready((state, loss))[1])

    return run


class Block(nn.Module):
    """A basic block, in PyTorch."""

    def __init__(self, inputs, features, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.shortcut = nn.Identity()
        if stride > 1:
            conv = nn.Conv2d(inputs, features, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(features))

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def torch_model(width):
    """ResNet-18 with the CIFAR stem, then SimCLR's projector, in PyTorch."""
    stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
    layers, inputs = [stem, nn.BatchNorm2d(width), nn.ReLU()], width
    for stage in range(4):
        for stride in (1 if stage == 0 else 2, 1):
            layers.append(Block(inputs, width * 2**stage, stride))
            inputs = width * 2**stage
    hidden = [nn.Linear(inputs, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU()]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, *hidden, nn.Linear(512, 128))


def torch_step(views, width):
    """Returns a function without arguments that trains one step and returns its loss."""
    torch.manual_seed(0)
    model = torch_model(width).to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, Block):
            nn.init.zeros_(module.bn2.weight)
    images = torch.from_numpy(np.concatenate(views.swapaxes(0, 1)).transpose(0, 3, 1, 2).copy())
    images = images.to(memory_format=torch.channels_last)
    params = list(model.parameters())
    momenta = [torch.zeros_like(p) for p in params]
    count = len(images)
    positives = torch.arange(count).roll(count // 2)

    def run():
        z = functional.normalize(model(images))
        logits = z @ z.T / TEMPERATURE
        logits = logits.masked_fill(torch.eye(count, dtype=torch.bool), -torch.inf)
        loss = functional.cross_entropy(logits, positives)
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for p, v, grad in zip(params, momenta, grads, strict=True):
                trust = 1.0
                if p.ndim > 1:
                    grad = grad + WEIGHT_DECAY * p
                    trust = TRUST_COEFFICIENT * p.norm() / grad.norm()
                v.mul_(0.9).add_(LEARNING_RATE * trust * grad)
                p.sub_(v)
        return loss.item()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16, help="features of the first stage")
    parser.add_argument("--batch_size", type=int, default=128, help="pairs of views")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    views = rng.normal(size=(options.batch_size, 2, 32, 32, 3)).astype(np.float32)
    steps = {
        "gsjax": gsjax_step(views, options.width, fast=True),
        "gsjax, plain": gsjax_step(views, options.width, fast=False),
        "PyTorch": torch_step(views, options.width),
    }
    for name, step in steps.items():
        print(f"{name}: loss of the first step {step():.3f}")  # compiles
    clocks = {"wall": time.perf_counter, "CPU": time.process_time}
    seconds = {(clock, name): [] for clock in clocks for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            starts = {clock: read() for clock, read in clocks.items()}
            step()
            for clock, read in clocks.items():
                seconds[clock, name].append(read() - starts[clock])
    print(f"JAX {jax.__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    for (clock, name), times in seconds.items():
        ratio = statistics.median(
            a / b for a, b in zip(times, seconds[clock, "PyTorch"], strict=True)
        )
        print(
            f"{name:14}{statistics.median(times):8.3f} s {clock} (best {min(times):.3f}), "
            f"{ratio:.2f} times PyTorch's"
        )


if __name__ == "__main__":
    main()

"""MoCo v2's training in PyTorch, from gsjax's initial weights and on gsjax's views.

    pip install torch==2.13.0
    python tests/benchmarks/mocov2_vs_torch.py --data_dir DIR --seed 5 --steps 20

Prints the loss and the spread of the queries (embedding_std * sqrt(d)) of each step on both sides.
`configs/mocov2_cifar10.py` at width 16, seed and data as given. With --steps 600 it also prints the
means over the last 50 steps. Differences grow with the steps, as rounding does.

With --torch_seed N, PyTorch trains alone, from weights and a queue of its own. --knn adds the
accuracy of PyTorch's encoder by scikit-learn (k = 201, majority vote, cosine distance).
"""

import argparse
import copy
import math
import pathlib

import jax
import numpy as np
import step_vs_torch
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional

from gsjax import methods
from gsjax.config import settings
from gsjax.data import input_pipeline, sources, transforms
from gsjax.runtime import parallel
from gsjax.train import optimizers, step

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "mocov2_cifar10.py"
STEPS = 600  # of the schedule


def torch_model(params):
    """ResNet-18 and a head without BatchNorm, with gsjax's weights."""
    width, (inputs, hidden) = (
        len(params["encoder"]["bn1"]["scale"]),
        (params["projector"]["linear1"]["kernel"].shape),
    )
    trunk = list(step_vs_torch.torch_model(width))[:-4]
    out = params["projector"]["linear2"]["kernel"].shape[1]
    model = nn.Sequential(*trunk, nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, out))

    def copy_conv(module, names):
        module.weight.data = torch.tensor(np.transpose(names["kernel"], (3, 2, 0, 1)))

    encoder = params["encoder"]
    copy_conv(model[0], encoder["conv1"])
    blocks = [module for module in model if isinstance(module, step_vs_torch.Block)]
    for number, block in enumerate(blocks):
        weights = encoder[f"layer{number // 2 + 1}_{number % 2}"]
        copy_conv(block.conv1, weights["conv1"])
        copy_conv(block.conv2, weights["conv2"])
        nn.init.zeros_(block.bn2.weight)
        if "downsample_conv" in weights:
            copy_conv(block.shortcut[0], weights["downsample_conv"])
    for module, name in ((model[-3], "linear1"), (model[-1], "linear2")):
        module.weight.data = torch.tensor(params["projector"][name]["kernel"].T)
        module.bias.data = torch.tensor(params["projector"][name]["bias"])
    return model.to(memory_format=torch.channels_last)


def own_weights(model, queue, seed):
    """PyTorch's own draws: He's normal of the outputs for convolutions, its default for layers."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
    return functional.normalize(torch.randn(queue.shape))


def accuracy(model, config):
    """kNN top-1 in percent of the features below the head, with running statistics."""
    encoder = nn.Sequential(*list(model)[:-3]).eval()
    mean, std, _ = step.pixels(config)

    def features(split):
        source = sources.open_source(config.data, split, labeled=True)
        side = config.data.image_size
        rows, labels = [], []
        for batch in input_pipeline.test_batches(source, transforms.central(side), 500):
            images = (batch["image"] / np.float32(255) - np.float32(mean)) / np.float32(std)
            with torch.no_grad():
                rows.append(encoder(torch.tensor(images.transpose(0, 3, 1, 2))).numpy())
            labels.append(batch["label"])
        return np.concatenate(rows), np.concatenate(labels)

    classifier = KNeighborsClassifier(201, algorithm="brute", metric="cosine")
    return 100 * classifier.fit(*features("train")).score(*features("test"))


def torch_steps(model, queue, config):
    """A generator: takes normalized views [B, 2, S, S, 3], gives loss and spread of a step."""
    target = copy.deepcopy(model).requires_grad_(False)
    start = 0
    base, momentum = config.optimizer.learning_rate, config.target.momentum
    sgd = torch.optim.SGD(
        model.parameters(), base, config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
    )  # fmt: skip
    views = yield
    for k in range(STEPS):
        sgd.param_groups[0]["lr"] = base * (1 + math.cos(math.pi * k / STEPS)) / 2
        images = torch.tensor(np.transpose(views, (1, 0, 4, 2, 3)))
        images = [view.contiguous(memory_format=torch.channels_last) for view in images]
        queries = [functional.normalize(model(view)) for view in images]
        with torch.no_grad():
            keys = [functional.normalize(target(view)) for view in images]
        loss = 0.0
        for query, key in zip(queries, reversed(keys), strict=True):
            own = (query * key).sum(1, keepdim=True)
            logits = torch.cat([own, query @ queue.T], 1) / config.loss.temperature
            loss = loss + functional.cross_entropy(logits, torch.zeros(len(own)).long()) / 2
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        with torch.no_grad():
            rows = torch.cat(keys)
            queue[start : start + len(rows)] = rows
            start = (start + len(rows)) % len(queue)
            for old, new in zip(target.parameters(), model.parameters(), strict=True):
                old.mul_(momentum).add_(new, alpha=1 - momentum)
            both = torch.stack(queries)
            spread = both.std(dim=(0, 1), correction=0).mean() * both.shape[-1] ** 0.5
        views = yield float(loss.detach()), float(spread)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True, help="TFDS directory with CIFAR-10")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--torch_seed", type=int)
    parser.add_argument("--knn", action="store_true")
    arguments = parser.parse_args()
    config = settings.load(str(CONFIG))
    changes = {
        "encoder.width": "16", "num_steps": str(STEPS), "seed": str(arguments.seed),
        "data.data_dir": arguments.data_dir,
    }  # fmt: skip
    settings.override(config, changes)
    config = settings.check(config)
    source = sources.open_source(config.data, config.data.split)
    mesh = parallel.create_mesh(config.batch_size, jax.devices()[:1])
    method = methods.create_method(config)
    schedule = optimizers.create_schedule(config, STEPS, 1)
    optimizer = optimizers.create_optimizer(config, schedule, method.param_groups)
    init_key, step_key = step.keys(config)
    state = step.create_state_fn(config, method, optimizer, mesh)(init_key)
    params, rows = jax.device_get((state.params, state.extra["queue"]))
    model, queue = torch_model(params), torch.tensor(rows)
    alone = arguments.torch_seed is not None
    if alone:
        queue = own_weights(model, queue, arguments.torch_seed)
    peer = torch_steps(model, queue, config)
    next(peer)
    train_step = step.create_train_step(config, method, optimizer, mesh, STEPS, 1)
    position = np.arange(config.batch_size)
    augment = jax.jit(
        lambda crops, k: step.augment_views(
            crops, jax.random.fold_in(step_key, k), position, config
        )
    )
    found = []
    for k, batch in enumerate(input_pipeline.train_batches(source, config, 0, arguments.steps)):
        crops = {"global": batch["global"]}
        theirs = peer.send(np.asarray(augment(crops, k)["global"]))
        ours = ()
        if not alone:
            state, metrics = train_step(state, parallel.shard(crops, mesh), step_key)
            spread = float(metrics["embedding_std"]) * config.projector.out_dim**0.5
            ours = (float(metrics["loss"]), spread)
        found.append((*theirs, *ours))
        print(f"step {k + 1}: {shown(found[-1])}", flush=True)
    print(f"last steps: {shown(np.mean(found[-50:], axis=0))}", flush=True)
    if arguments.knn:
        print(f"kNN of PyTorch's encoder: {accuracy(model, config):.2f} %")


def shown(values):
    """Loss and spread of PyTorch and, if it trained, of gsjax."""
    names = ("PyTorch", "gsjax")[: len(values) // 2]
    return "  ".join(
        f"{name} {values[2 * i]:.4f} {values[2 * i + 1]:.4f}" for i, name in enumerate(names)
    )


if __name__ == "__main__":
    main()

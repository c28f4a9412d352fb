"""Times on one GPU, each beside a peer in the same run.

    python tests/benchmarks/gpu_vs_torch.py step knn logistic

Needs neither TensorFlow nor CLU.

step: the compiled step of configs/simclr_gs_imagenet.py (ResNet-50, 224 px, 256 images, bfloat16),
  whole and without augmentation and with NT-Xent, which PyTorch runs beside it under autocast in
  channels_last, eager. Both begin with uint8 pixels on the GPU and end with the LARS update.
knn: 10,000 queries against 50,000 features of 512 dimensions, beside PyTorch's matmul and topk.
logistic: the 45 penalties of logistic_vs_sklearn.py, beside scikit-learn on the same machine's CPU.
"""

import functools
import pathlib
import statistics
import sys
import time

import jax
import numpy as np

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "simclr_gs_imagenet.py"
BATCH, SIDE, CLASSES, K, ROUNDS = 256, 224, 100, 201, 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def median_ms(run, calls=1):
    """Milliseconds of one of the `calls` that `run` makes and waits for; not of its first time."""
    run()
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        seconds.append((time.perf_counter() - began) / calls)
    return 1000 * statistics.median(seconds)


def prepare(path, overrides, views, devices=None):
    """The training step of a config: the program, its state, batch and key, and the settings."""
    from gsjax import methods
    from gsjax.config import settings
    from gsjax.crops import Crops
    from gsjax.runtime import parallel
    from gsjax.train import optimizers, step

    config = settings.load(str(path))
    settings.override(config, overrides | {"batch_size": str(len(views))})
    settings.check(config)
    mesh = parallel.create_mesh(config.batch_size, devices)
    method = methods.create_method(config)
    optimizer = optimizers.create_optimizer(config, lambda step: 0.3)
    init_key, key = step.keys(config)
    state = step.create_state_fn(config, method, optimizer, mesh)(init_key)
    scale = np.float32(views.shape[2] / SIDE)
    boxes = np.float32([[10, 10, 200, 200], [50, 60, 150, 160]]) * scale
    boxes = np.tile(boxes, (len(views), 1, 1))
    batch = parallel.shard({"global": Crops(views, boxes)}, mesh)
    program = step.create_train_step(config, method, optimizer, mesh, 1000, 100)
    return program, state, batch, key, config


def gsjax_steps(views, plain, calls):
    """A function that takes `calls` steps; `plain`: no augmentation and no similarity."""
    overrides = {"encoder.dtype": "bfloat16"}
    if plain:
        overrides["similarity.measure"] = "none"
        overrides |= {f"augment.{name}": "0" for name in ("flip", "jitter", "gray", "blur")}
    program, state, batch, key, _ = prepare(CONFIG, overrides, views)
    began = time.perf_counter()
    program = program.lower(state, batch, key).compile()
    print(f"  compiled in {time.perf_counter() - began:.0f} s", flush=True)

    def run():
        nonlocal state
        for _ in range(calls):
            state, values = program(state, batch, key)
        assert np.isfinite(float(values["loss"]))

    return run


def torch_steps(views, calls):
    import torch
    import torchvision
    from torch import nn
    from torch.nn import functional

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    encoder = torchvision.models.resnet50(zero_init_residual=True)
    encoder.fc = nn.Identity()
    hidden = [nn.Linear(2048, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU()]
    model = nn.Sequential(encoder, *hidden, nn.Linear(512, 128))
    model = model.cuda().to(memory_format=torch.channels_last)
    pixels = torch.from_numpy(views.swapaxes(0, 1).reshape(-1, *views.shape[2:])).cuda()
    mean, std = (torch.tensor(x, device="cuda").view(1, 3, 1, 1) for x in (MEAN, STD))
    params = list(model.parameters())
    momenta = [torch.zeros_like(p) for p in params]
    count = 2 * BATCH
    positives = torch.arange(count, device="cuda").roll(BATCH)
    own = torch.eye(count, dtype=torch.bool, device="cuda")

    def run():
        for _ in range(calls):
            images = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
            with torch.autocast("cuda", torch.bfloat16):
                z = model(images)
            z = functional.normalize(z.float())
            logits = (z @ z.T / 0.5).masked_fill(own, -torch.inf)
            loss = functional.cross_entropy(logits, positives)
            grads = torch.autograd.grad(loss, params)
            with torch.no_grad():
                decayed = [p.ndim > 1 for p in params]
                grads = [
                    g + 1e-6 * p if d else g for g, p, d in zip(grads, params, decayed, strict=True)
                ]
                norms = torch._foreach_norm(params), torch._foreach_norm(grads)
                trusts = [
                    0.001 * p / g if d else torch.ones_like(p)
                    for p, g, d in zip(*norms, decayed, strict=True)
                ]
                torch._foreach_mul_(grads, trusts)
                torch._foreach_mul_(momenta, 0.9)
                torch._foreach_add_(momenta, grads, alpha=0.3)
                torch._foreach_sub_(params, momenta)
        assert np.isfinite(loss.item())

    return run


def time_step():
    views = np.random.default_rng(0).integers(0, 256, (BATCH, 2, SIDE, SIDE, 3), np.uint8)
    calls = 5
    theirs = torch_steps(views, calls)
    torch_ms = median_ms(theirs, calls)
    print(f"  PyTorch: {torch_ms:.1f} ms", flush=True)
    ours = gsjax_steps(views, True, calls)
    plain_ms = median_ms(ours, calls)
    again_ms = median_ms(theirs, calls)
    whole_ms = median_ms(gsjax_steps(views, False, calls), calls)
    print(
        f"step of {BATCH} images: gsjax without augmentation {plain_ms:.1f} ms, PyTorch "
        f"{torch_ms:.1f} and {again_ms:.1f} ms, ratio PyTorch / gsjax "
        f"{(torch_ms + again_ms) / 2 / plain_ms:.2f}\n"
        f"whole step with augmentation and similarity {whole_ms:.1f} ms, "
        f"{1000 * BATCH / whole_ms:.0f} images/s, augmentation {1 - plain_ms / whole_ms:.0%}",
        flush=True,
    )


def time_knn():
    import torch

    from gsjax.evaluate import nearest

    generator = np.random.default_rng(0)
    centers = 0.3 * generator.normal(size=(CLASSES, 512))

    def features(n):
        labels = generator.integers(0, CLASSES, n)
        noise = generator.normal(size=(n, 512))
        return np.maximum(centers[labels] + noise, 0).astype(np.float32), labels

    (bank, labels), (queries, _) = features(50_000), features(10_000)
    found = {}

    def ours():
        found["gsjax"] = nearest.predict(bank, labels, queries, nearest.Protocol(K, 0.0))[:, 0]

    def theirs():
        torch.backends.cuda.matmul.allow_tf32 = False
        unit = [torch.nn.functional.normalize(torch.from_numpy(x).cuda()) for x in (bank, queries)]
        classes = torch.from_numpy(labels).cuda()
        votes = []
        for part in unit[1].split(1024):
            places = (part @ unit[0].T).topk(K).indices
            votes.append(torch.nn.functional.one_hot(classes[places], CLASSES).sum(1).argmax(1))
        found["torch"] = torch.cat(votes).cpu().numpy()

    times = [median_ms(run) for run in (ours, theirs, ours, theirs)]
    ours_ms, theirs_ms = (times[0] + times[2]) / 2, (times[1] + times[3]) / 2
    print(
        f"kNN: gsjax {ours_ms:.0f} ms, PyTorch {theirs_ms:.0f} ms, ratio PyTorch / gsjax "
        f"{theirs_ms / ours_ms:.2f}, same class {np.mean(found['gsjax'] == found['torch']):.3%}",
        flush=True,
    )


def time_logistic():
    import logistic_vs_sklearn as peer

    data = peer.create_data(1.6)
    ours = functools.partial(peer.run_gsjax, *data, 0)
    peer.report("gsjax, first call", *peer.timed(ours))
    peer.report("gsjax, second call", *peer.timed(ours))
    with peer.threadpool_limits(1, user_api="blas"):
        peer.report("scikit-learn, 1 thread", *peer.timed(lambda: peer.run_sklearn(*data)))


def main():
    parts = {"step": time_step, "knn": time_knn, "logistic": time_logistic}
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}", flush=True)
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()

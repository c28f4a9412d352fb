"""Records what torchvision's ResNets and torch.save do, for tests that have neither.

    pip install torch torchvision timm && python tests/golden/torchvision_resnets.py

Writes torchvision_resnets.npz and the tiny torch_*.pth next to itself. Weights are drawn from the
names of their keys, so that a test can draw them again.
"""

import argparse
import pathlib
import zlib

import numpy as np

SIZES = (64, 75)
EVERY = 16  # of the features are kept


def draw(key, shape):
    """A tensor for a key of a ResNet, such that activations neither vanish nor explode."""
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return np.zeros((), np.int64)
    if len(shape) > 1:
        return generator.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
    if key.endswith("running_var"):
        return generator.uniform(0.5, 2, shape).astype(np.float32)
    if key.endswith(".weight"):
        return generator.uniform(0.2, 0.8, shape).astype(np.float32)
    return generator.normal(0, 0.1, shape).astype(np.float32)


def pixels(size):
    """Two normalized images, float32 [2, S, S, 3]."""
    return np.random.default_rng(size).normal(size=(2, size, size, 3)).astype(np.float32)


def main():
    """Writes the files."""
    import timm
    import torch
    import torchvision

    found = {}
    for name in ("resnet18", "resnet34", "resnet50", "resnet101"):
        for library, create in (("torchvision", torchvision.models), ("timm", timm.models)):
            model = getattr(create, name)().eval()
            state = {
                key: torch.from_numpy(draw(key, tuple(value.shape)))
                for key, value in model.state_dict().items()
            }
            model.load_state_dict(state)
            model.fc = torch.nn.Identity()
            for size in SIZES:
                with torch.no_grad():
                    features = model(torch.from_numpy(pixels(size).transpose(0, 3, 1, 2).copy()))
                found[f"{library}_{name}_{size}"] = features.numpy()[:, ::EVERY]
    folder = pathlib.Path(__file__).parent
    np.savez(folder / "torchvision_resnets.npz", **found)
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    for legacy in (False, True):
        content = {
            "state_dict": {
                "plain": base,
                "transposed": base.T,
                "part": base[1:, 2:],
                "half": base.half() / 4,
                "bfloat16": base.bfloat16() / 4,
                "counter": torch.tensor(7),
                "empty": torch.zeros(0, 3),
                "parameter": torch.nn.Parameter(base[0].clone()),
                "flags": base > 5,
            },
            "args": argparse.Namespace(rate=0.1, folder=pathlib.PurePosixPath("/data")),
            "epoch": 3,
        }
        name = "torch_legacy.pth" if legacy else "torch_zip.pth"
        torch.save(content, folder / name, _use_new_zipfile_serialization=not legacy)


if __name__ == "__main__":
    main()

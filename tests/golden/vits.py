"""Records what the vision transformers of timm, DINO, DINOv2 and MoCo v3 do.

    python tests/golden/vits.py DINO MOCO_V3 DINOV2

Needs torch, torchvision and timm; the arguments are checkouts of facebookresearch's repositories.
Writes vits.npz next to itself. Models have two blocks. Weights are drawn from the names of their
keys, so that a test can draw them again.
"""

import functools
import importlib.util
import pathlib
import sys
import zlib

import numpy as np

SIZES = {
    "timm": (224, 96, (112, 160)),
    "dino": (224, 96, (112, 160)),
    "mocov3": (224,),
    "dinov2": (224, 98),
}
EVERY = 8  # of the features are kept


def draw(key, shape):
    """A tensor for a key of a vision transformer."""
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    if len(shape) == 3:  # positions, class token
        values = generator.normal(0, 0.5, shape)
    elif len(shape) > 1:
        values = generator.normal(0, np.prod(shape[1:]) ** -0.5, shape)
    elif key.endswith((".weight", ".gamma")):
        values = generator.uniform(0.5, 1.5, shape)
    else:
        values = generator.normal(0, 0.1, shape)
    return values.astype(np.float32)


def pixels(size):
    """Two normalized images, float32 [2, H, W, 3]."""
    height, width = size if isinstance(size, tuple) else (size, size)
    return np.random.default_rng(height).normal(size=(2, height, width, 3)).astype(np.float32)


def main(dino, moco_v3, dinov2):
    """Writes the file."""
    import timm
    import timm.layers
    import torch

    def module(name, path):
        spec = importlib.util.spec_from_file_location(name, path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    # Both repositories' files import what newer versions of timm have elsewhere.
    sys.modules["timm.models.layers"] = sys.modules["timm.models.layers.helpers"] = timm.layers
    timm.models.VisionTransformer.num_tokens = 1
    sys.path[:0] = [dino, dinov2]
    from dinov2.models import vision_transformer as v2

    dino_vits = module("dino_vits", f"{dino}/vision_transformer.py")
    moco_vits = module("moco_vits", f"{moco_v3}/vits.py")
    moco_vits._cfg = dict
    models = {
        "timm": timm.create_model(
            "vit_small_patch16_224", depth=2, num_classes=0, dynamic_img_size=True
        ),
        "dino": dino_vits.VisionTransformer(
            embed_dim=384, depth=2, num_heads=6, qkv_bias=True,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        ),
        "mocov3": moco_vits.VisionTransformerMoCo(
            embed_dim=384, depth=2, num_heads=12, qkv_bias=True, num_classes=0,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        ),
        "dinov2": v2.DinoVisionTransformer(
            img_size=518, patch_size=14, embed_dim=384, depth=2, num_heads=6, init_values=1.0,
            block_chunks=0,
        ),
    }  # fmt: skip
    found = {"mocov3_positions": models["mocov3"].pos_embed.detach().numpy()[0, ::EVERY]}
    for name, model in models.items():
        state = {
            key: value
            if (name, key) == ("mocov3", "pos_embed")
            else torch.from_numpy(draw(key, tuple(value.shape)))
            for key, value in model.state_dict().items()
        }
        model.eval().load_state_dict(state)
        for size in SIZES[name]:
            with torch.no_grad():
                features = model(torch.from_numpy(pixels(size).transpose(0, 3, 1, 2).copy()))
            found[f"{name}_{size}"] = features.numpy()[:, ::EVERY]
    np.savez(pathlib.Path(__file__).parent / "vits.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

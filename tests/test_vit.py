"""Vision transformers: outputs of other programs, positions, drop path, rematerialization."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from golden import vits

from gsjax import models
from gsjax.config import defaults, settings, weights_settings
from gsjax.errors import UserError
from gsjax.evaluate import foreign
from gsjax.models import weights
from gsjax.models.vit import ViT, attend, resize_positions, sincos
from gsjax.models.weights import names

TINY = {"width": 24, "depth": 3, "num_heads": 2, "patch_size": 4}


@pytest.fixture(scope="module")
def golden(repo_root):
    with np.load(repo_root / "tests" / "golden" / "vits.npz") as saved:
        return dict(saved)


def initial(encoder, images):
    """Its variables; compiled as a whole, as are the outputs below."""
    return jax.jit(lambda images: encoder.init(jax.random.key(0), images, train=True))(images)


def outputs_of(encoder, variables, images, train=False, keys=None):
    def apply(variables, images, keys):
        return encoder.apply(variables, images, train=train, keys=keys)

    return jax.jit(apply)(variables, images, keys)


def encoder_of(changes):
    config = defaults.get_config()
    config.update_from_flattened_dict(changes)
    return models.create_encoder(config)


# What the file of each format has besides the names that all share: prefix, image size, settings.
FORMATS = {
    "timm": ("", 224, {"encoder.interpolation": "antialias"}),
    "dino": ("", 224, {}),
    "mocov3": ("module.base_encoder.", 224, {"encoder.heads": 12}),
    "dinov2": ("", 518, {"encoder.patch_size": 14, "encoder.layer_scale": 1e-5}),
}


def write_file(name, golden, path):
    """A file as this program writes it, of an encoder with two blocks."""
    prefix, size, changes = FORMATS[name]
    module = encoder_of({"encoder.name": "vit_small", "encoder.depth": 2, **changes})
    target, family = foreign.abstract(module, size), weights.family("vit_small")
    shapes = names.to_shapes(target, family.module_name)
    tensors = {key: vits.draw(key, shape) for key, shape in shapes.items()}
    if name == "mocov3":
        tensors["pos_embed"] = sincos(14, 14, 384)
        tensors["head.0.weight"] = np.zeros((8, 384), np.float32)
    if name == "dinov2":
        tensors["mask_token"] = np.zeros((1, 384), np.float32)
    if name == "timm":
        tensors |= {"head.weight": np.zeros((8, 384), np.float32), "head.bias": np.zeros(8)}
    tensors = {prefix + key: value for key, value in tensors.items()}
    safetensors.numpy.save_file(tensors, path)


@pytest.mark.parametrize("name", FORMATS)
def test_features_are_those_of_the_program_that_wrote_the_file(name, golden, tmp_path):
    """Recorded by golden/vits.py, which draws the same weights; at several image sizes."""
    path = tmp_path / "weights.safetensors"
    write_file(name, golden, path)
    found = weights.find(str(path))
    shown = {"timm": "timm", "dino": "DINO", "mocov3": "MoCo v3", "dinov2": "DINOv2"}
    assert found.format == shown[name]
    module = encoder_of(weights_settings.checked(found))
    variables = weights.variables(found, foreign.abstract(module, found.image_size))
    encode = jax.jit(lambda images: module.apply(variables, images, train=False).pooled)
    for size in vits.SIZES[name]:
        ours, theirs = encode(vits.pixels(size))[:, :: vits.EVERY], golden[f"{name}_{size}"]
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max(), size


def test_a_file_that_does_not_tell_the_normalization(golden, tmp_path):
    write_file("timm", golden, tmp_path / "weights.safetensors")
    found = weights.find(str(tmp_path / "weights.safetensors"))
    assert found.doubt.endswith(
        "does not tell how images are normalized; timm's AugReg models need "
        "data.mean=0.5,0.5,0.5 data.std=0.5,0.5,0.5"
    )


def write_alone(path, name, golden, **others):
    """The encoder alone, without a prefix; MoCo v3's as its convert_to_deit.py writes it."""
    write_file(name, golden, path)
    tensors = safetensors.numpy.load_file(path)
    prefix = FORMATS[name][0]
    tensors = {
        key.removeprefix(prefix): value for key, value in tensors.items() if "head" not in key
    }
    safetensors.numpy.save_file(tensors | others, path)


def test_what_the_shapes_do_not_tell(golden, tmp_path, repo_root):
    """MoCo v3 has fixed positions, and 12 heads; MAE's mask token alone is not DINOv2's."""
    path = tmp_path / "weights.safetensors"
    write_alone(path, "mocov3", golden)
    found = weights.find(str(path))
    assert (found.format, found.settings["encoder.heads"]) == ("MoCo v3", 12)
    write_alone(path, "dino", golden, mask_token=np.zeros((1, 1, 384), np.float32))
    assert weights.find(str(path)).format == "unknown source"
    # Whatever a config file says about them, a file's defaults hold; the command line wins.
    write_alone(path, "dino", golden)
    config = settings.load(str(repo_root / "configs" / "mocov3_vit_small_imagenet.py"))
    config.encoder.weights = str(path)
    weights_settings.apply(config, {})
    assert (config.encoder.heads, config.encoder.positions) == (0, "learned")
    overrides = {"encoder.heads": "12", "encoder.interpolation": "antialias"}
    settings.override(config, overrides)
    weights_settings.apply(config, overrides)
    assert (config.encoder.heads, config.encoder.interpolation) == (12, "antialias")
    with pytest.raises(UserError, match=r"encoder.depth=3 contradicts .* which has 2"):
        weights_settings.apply(config, {"encoder.depth": "3"})


def test_a_full_checkpoint_of_dino(golden, tmp_path):
    """The teacher's backbone, under its prefixes, next to the student's."""
    path = tmp_path / "weights.safetensors"
    write_alone(path, "dino", golden)
    tensors = safetensors.numpy.load_file(path)
    both = {
        f"{role}.module.backbone.{key}": value * (1 + (role == "student"))
        for role in ("teacher", "student")
        for key, value in tensors.items()
    }
    safetensors.numpy.save_file(both, path)
    found = weights.find(str(path))
    assert (found.format, found.network.is_target) == ("DINO", True)
    assert found.settings["features.interpolation"] == "bicubic"
    target = foreign.abstract(encoder_of(weights_settings.checked(found)), found.image_size)
    variables = weights.variables(found, target)
    np.testing.assert_array_equal(variables["params"]["pos_embed"], tensors["pos_embed"])


@pytest.mark.parametrize(
    ("architecture", "arguments", "expected"),
    [
        ("vit_small_patch16_224.augreg_in21k", {}, {"encoder.heads": 0, "encoder.pool": "token"}),
        ("deit_small_patch16_224", {}, {"encoder.interpolation": "antialias"}),
        (
            "vit_small_patch16_224",
            {"num_heads": 12, "global_pool": "avg", "fc_norm": False},
            {"encoder.heads": 12, "encoder.pool": "mean"},
        ),
        ("vit_small_patch16_clip_224", {}, "names the architecture vit_small_patch16_clip_224"),
        ("vit_base_patch16_224", {}, "names the architecture vit_base_patch16_224"),
    ],
)
def test_folders_of_timm(architecture, arguments, expected, golden, tmp_path):
    write_alone(tmp_path / "model.safetensors", "dino", golden)
    content = {
        "architecture": architecture, "model_args": arguments,
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 224, 224]},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(content))
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            weights.find(str(tmp_path))
        return
    found = weights.find(str(tmp_path))
    config = defaults.get_config()
    config.update_from_flattened_dict(weights_settings.checked(found))
    assert found.format == "timm" and config.data.mean == "0.5,0.5,0.5" and not found.doubt
    flat = settings.flatten(config)
    assert {key: flat[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reg_token": (1, 4, 384)}, "reg_token belongs to an architecture that gsjax does not"),
        ({"pos_embed": (1, 180, 384)}, r"pos_embed is \[1, 180, 384\], but should be \[1, 1 \+"),
        ({"patch_embed.proj.weight": (512, 3, 16, 16)}, "has 512 channels; gsjax has 192, 384"),
        ({"patch_embed.proj.weight": (384, 1, 16, 16)}, r"\[384, 1, 16, 16\], but should be \["),
    ],
)
def test_encoders_that_gsjax_does_not_have(change, message, tmp_path):
    path = tmp_path / "weights.safetensors"
    shapes = {
        "patch_embed.proj.weight": (384, 3, 16, 16),
        "blocks.0.attn.qkv.weight": (1152, 384),
        "pos_embed": (1, 197, 384),
    }
    tensors = {key: np.zeros(shape, np.float32) for key, shape in (shapes | change).items()}
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(UserError, match=message):
        weights.find(str(path))


def test_numbers_of_parameters():
    """timm's vit_small_patch16_224 has 150 tensors."""
    counts = {}
    for name in models.VIT_WIDTHS:
        shapes = jax.tree.leaves(foreign.abstract(encoder_of({"encoder.name": name}), 224))
        counts[name] = (len(shapes), sum(np.prod(leaf.shape) for leaf in shapes))
    assert counts == {
        "vit_tiny": (150, 5_524_416),
        "vit_small": (150, 21_665_664),
        "vit_base": (150, 85_798_656),
    }


def test_fixed_positions(golden):
    """Row by row; the first half of the channels depends on the row."""
    table = sincos(14, 14, 384)
    np.testing.assert_allclose(table[0, :: vits.EVERY], golden["mocov3_positions"], atol=1e-6)
    patches = sincos(2, 3, 8)[0, 1:].reshape(2, 3, 8)
    for row, column in itertools.product(range(2), range(3)):
        expected = [
            f(place * frequency)
            for place in (row, column)
            for f in (np.sin, np.cos)
            for frequency in (1, 0.01)
        ]
        np.testing.assert_allclose(patches[row, column], expected, atol=1e-6)


def test_frozen_parameters_have_no_gradient():
    encoder = ViT(**TINY, positions="sincos", freeze_patches=True, initializer="xavier")
    assert encoder.frozen == ("pos_embed", "patch_embed_proj")
    assert ViT(**TINY).frozen == ()
    images = jnp.asarray(vits.pixels(16))
    params = initial(encoder, images)["params"]

    def energy(params):
        return jnp.sum(encoder.apply({"params": params}, images, train=True).maps ** 2)

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(energy))(params)):
        assert (np.abs(gradient).max() == 0) == (path[0].key in encoder.frozen), path


def test_attention_is_the_plain_form():
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 7, 3, 5))
    for query, key, value, n, head in [(q, k, v, n, head) for n in range(2) for head in range(3)]:
        logits = query[n, :, head] @ key[n, :, head].T / np.sqrt(5)
        weight = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        expected = weight @ value[n, :, head]
        single = attend(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)))
        np.testing.assert_allclose(single[n, :, head], expected, atol=1e-5)
        with jax.enable_x64(True):
            double = attend(*map(jnp.asarray, (query, key, value)))
            np.testing.assert_allclose(double[n, :, head], expected, atol=1e-13)


def test_attention_by_cudnn():
    if jax.default_backend() != "gpu":
        pytest.skip("needs cuDNN on an NVIDIA GPU")
    q, k, v = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 197, 6, 64)), jnp.bfloat16)
    np.testing.assert_allclose(attend(q, k, v, "cudnn"), attend(q, k, v), atol=2e-2)


def test_bfloat16_is_close_and_its_parameters_are_float32():
    images = jnp.asarray(vits.pixels(32))
    wide, narrow = ViT(**TINY), ViT(**TINY, dtype=jnp.bfloat16)
    variables = initial(narrow, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    expected, found = (outputs_of(m, variables, images).pooled for m in (wide, narrow))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=5e-2)
    assert np.abs(found - expected).max() > 1e-4


def test_pooling_and_maps():
    images = jnp.asarray(vits.pixels((16, 24)))
    token, mean = ViT(**TINY), ViT(**TINY, pool="mean")
    variables = initial(token, images[:, :, :16])
    by_token, by_mean = (outputs_of(m, variables, images) for m in (token, mean))
    assert by_token.maps.shape == (2, 4, 6, 24)
    np.testing.assert_array_equal(by_token.maps, by_mean.maps)
    np.testing.assert_allclose(by_mean.pooled, by_mean.maps.mean(axis=(1, 2)), atol=1e-6)
    assert np.abs(by_token.pooled - by_mean.pooled).max() > 0.1


def drop_path_of(encoder, variables, images, keys):
    return outputs_of(encoder, variables, images, train=True, keys=keys).pooled


def test_drop_path_skips_branches_of_each_image():
    """With the factors by hand: 0 or 1 / (1 - rate); rate 0 in the first block."""
    encoder, images = ViT(**TINY, drop_path=0.5), jnp.asarray(vits.pixels(16))
    variables = initial(encoder, images)
    many = jax.random.split(jax.random.key(1), 4000)
    factors = encoder._factors(many)
    assert factors.shape == (4000, 3, 2)
    for block, rate in enumerate((0, 0.25, 0.5)):
        values, counts = np.unique(factors[:, block], return_counts=True)
        if not rate:
            assert values.tolist() == [1]
            continue
        np.testing.assert_allclose(values, [0, 1 / (1 - rate)])
        assert counts[0] / counts.sum() == pytest.approx(rate, abs=0.03)
    keys = many[:2]
    without = ViT(**TINY)
    plain = drop_path_of(without, variables, images, keys)
    dropped = drop_path_of(encoder, variables, images, keys)
    assert np.abs(plain - dropped).max() > 1e-3
    # One image alone draws the same; without keys, or in inference, nothing is dropped.
    alone = drop_path_of(encoder, variables, images[1:], keys[1:])
    np.testing.assert_allclose(alone, dropped[1:], atol=1e-5)
    np.testing.assert_array_equal(drop_path_of(encoder, variables, images, None), plain)
    inference = outputs_of(encoder, variables, images, keys=keys).pooled
    np.testing.assert_array_equal(inference, plain)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_rematerialization_changes_nothing(drop_path, x64):
    images = jnp.asarray(vits.pixels(16), jnp.float64)
    keys = jax.random.split(jax.random.key(1), 2)
    plain, remat = (
        ViT(**TINY, drop_path=drop_path, dtype=jnp.float64, remat=remat) for remat in (False, True)
    )
    variables = initial(plain, images)

    def run(encoder):
        def energy(variables):
            return jnp.sum(drop_path_of(encoder, variables, images, keys) ** 2)

        return jax.jit(jax.value_and_grad(energy))(variables)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), run(plain), run(remat))


def test_resized_positions():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1 + 9, 4)), jnp.float32)
    for interpolation in ("torch", "antialias"):
        assert resize_positions(table, 3, 3, interpolation) is table
        larger = resize_positions(table, 5, 2, interpolation)
        assert larger.shape == (1, 11, 4)
        np.testing.assert_array_equal(larger[:, 0], table[:, 0])
        even = resize_positions(jnp.ones((1, 10, 4)), 7, 2, interpolation)
        np.testing.assert_allclose(even, 1, atol=1e-6)


def test_parameters_for_images_of_another_size():
    encoder, images = ViT(**TINY), jnp.asarray(vits.pixels(24))
    variables = initial(encoder, jnp.zeros((1, 16, 16, 3)))
    fitted = models.fit_image_size(encoder, variables, 24)
    assert fitted["params"]["pos_embed"].shape == (1, 37, 24)
    expected, found = (outputs_of(encoder, v, images).pooled for v in (variables, fitted))
    np.testing.assert_array_equal(found, expected)


def test_cudnn_needs_a_gpu():
    changes = {
        "encoder.name": "vit_tiny", "encoder.dtype": "bfloat16", "encoder.attention": "cudnn"
    }  # fmt: skip
    if jax.default_backend() == "gpu":
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="cudnn needs an NVIDIA GPU, but the devices are cpu"):
        encoder_of(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.image_size": "30", "encoder.patch_size": "4"},
            "data.image_size is 30, but must be a multiple of the 4 pixels of a patch "
            "(encoder.patch_size); set data.image_size=32",
        ),
        (
            {"crops.local_views": "2", "encoder.patch_size": "4"},
            "crops.local_size is 14, but must be a multiple of the 4 pixels of a patch "
            "(encoder.patch_size); set crops.local_size=16",
        ),
        (
            {"encoder.heads": "5"},
            "encoder.heads is 5; it must divide 192, the encoder's width",
        ),
        (
            {"encoder.attention": "cudnn"},
            "encoder.attention=cudnn needs encoder.dtype=bfloat16",
        ),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    config = settings.load(None)
    settings.override(config, {"encoder.name": "vit_tiny", **changes})
    with pytest.raises(UserError) as error:
        settings.check(config)
    assert str(error.value) == message

"""Reading weights of other programs: files, formats, architectures."""

import io
import json
import os
import pickle
import struct
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch_files
from golden import torchvision_resnets
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gsjax.config import defaults, settings
from gsjax.errors import UserError
from gsjax.evaluate import foreign
from gsjax.models import create_encoder, resnet, weights
from gsjax.models.weights import names, pytorch, reader
from gsjax.runtime import pickles


def encoder_of(name="resnet18", width=64, stem="imagenet", padding="torch"):
    config = defaults.get_config()
    config.encoder.update({"name": name, "width": width, "stem": stem, "padding": padding})
    return create_encoder(config)


def tensors_of(module, size=32):
    """Random tensors for an encoder, with torchvision's names."""
    family = weights.family("resnet18")
    shapes = names.to_shapes(foreign.abstract(module, size), family.module_name)
    found = {key: torchvision_resnets.draw(key, shape) for key, shape in shapes.items()}
    counters = [key.replace("running_mean", "num_batches_tracked") for key in found]
    return found | {key: np.zeros((), np.int64) for key in counters if "tracked" in key}


def features(module, variables, images):
    return np.asarray(module.apply(variables, images, train=False).pooled)


def read(path, module, network="auto"):
    found = weights.find(str(path), network)
    return found, weights.variables(found, foreign.abstract(module, 32))


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", *(pytest.param(n, marks=pytest.mark.slow) for n in
                               ("resnet34", "resnet101"))],
)  # fmt: skip
def test_features_are_those_of_torchvision_and_timm(name, golden, tmp_path):
    """Recorded by golden/torchvision_resnets.py, which draws the same weights; to 1e-4."""
    module = encoder_of(name)
    safetensors.numpy.save_file(tensors_of(module), tmp_path / "weights.safetensors")
    found, variables = read(tmp_path / "weights.safetensors", module)
    assert found.settings["encoder.name"] == name
    for size in torchvision_resnets.SIZES:
        ours = features(module, variables, torchvision_resnets.pixels(size))
        for library in ("torchvision", "timm"):
            theirs = golden[f"{library}_{name}_{size}"]
            error = np.abs(ours[:, :: torchvision_resnets.EVERY] - theirs).max()
            assert error < 1e-4 * np.abs(theirs).max(), (library, size)


@pytest.fixture(scope="module")
def golden(repo_root):
    with np.load(repo_root / "tests" / "golden" / "torchvision_resnets.npz") as saved:
        return dict(saved)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_tensors_that_torch_saved(kind, repo_root):
    """Written by golden/torchvision_resnets.py."""
    data = (repo_root / "tests" / "golden" / f"torch_{kind}.pth").read_bytes()
    loaded = pytorch.load(data)
    assert loaded.entries == ("state_dict", "args", "epoch")
    found = {key.partition(".")[2]: t.array() for key, t in loaded.tensors.items()}
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = {
        "plain": base, "transposed": base.T, "part": base[1:, 2:], "half": base / 4,
        "bfloat16": base / 4, "counter": np.int64(7), "empty": np.zeros((0, 3)),
        "parameter": base[0], "flags": base > 5,
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == np.shape(value), key
        np.testing.assert_array_equal(found[key].astype(np.float64), value, err_msg=key)
    assert [found[key].dtype.name for key in ("half", "bfloat16", "flags")] == [
        "float16", "bfloat16", "bool",
    ]  # fmt: skip


def prefixed(tensors, prefix):
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def _heads(*keys):
    return {key: np.ones((2, 2), np.float32) for key in keys}


SMALL = {"name": "resnet18", "width": 8}
ZERO_ONE = {"data.mean": "0,0,0", "data.std": "1,1,1"}
# format: (content around the tensors `t` and those of another network `o`, settings it implies).
FORMATS = {
    "torchvision": (lambda t, o: t | _heads("fc.weight"), {}),
    "SimSiam": (
        lambda t, o: {
            "state_dict": prefixed(t, "module.encoder.")
            | _heads("module.encoder.fc.0.weight", "module.predictor.0.weight"),
            "epoch": 100,
        },
        {},
    ),
    "MoCo v1": (
        lambda t, o: {
            "state_dict": prefixed(t, "module.encoder_q.")
            | prefixed(o, "module.encoder_k.")
            | _heads("module.encoder_q.fc.weight", "module.queue"),
        },
        {},
    ),
    "MoCo v2": (
        lambda t, o: {
            "state_dict": prefixed(t, "module.encoder_q.")
            | prefixed(o, "module.encoder_k.")
            | _heads("module.encoder_q.fc.0.weight", "module.encoder_q.fc.2.weight"),
        },
        {},
    ),
    "MoCo v3": (
        lambda t, o: {
            "state_dict": prefixed(t, "module.base_encoder.")
            | prefixed(o, "module.momentum_encoder.")
            | _heads("module.base_encoder.fc.0.weight", "module.predictor.0.weight"),
        },
        {},
    ),
    "DINO": (
        lambda t, o: {
            "teacher": prefixed(t, "backbone.") | _heads("head.mlp.0.weight"),
            "student": prefixed(o, "module.backbone.") | _heads("module.head.mlp.0.weight"),
        },
        {"features.interpolation": "bicubic"},
    ),
    "SwAV": (
        lambda t, o: (
            prefixed(t, "module.")
            | _heads("module.projection_head.0.weight", "module.prototypes.weight")
        ),
        {"data.std": "0.228,0.224,0.225"},
    ),
    "Barlow Twins": (
        lambda t, o: {
            "model": prefixed(t, "module.backbone.")
            | _heads("module.projector.0.weight", "module.bn.running_mean"),
            "epoch": 5,
        },
        {},
    ),
    "VICReg": (
        lambda t, o: {
            "model": prefixed(t, "module.backbone.") | _heads("module.projector.0.weight"),
        },
        {},
    ),
    "VISSL": (
        lambda t, o: {
            "classy_state_dict": {
                "base_model": {"model": {"trunk": prefixed(t, "_feature_blocks.")}}
            }
        },
        {},
    ),
    "lightly": (
        lambda t, o: {
            "state_dict": prefixed(t, "backbone.")
            | prefixed(o, "key_backbone.")
            | _heads("projection_head.layers.0.weight", "online_classifier.weight"),
            "hyper_parameters": {"batch_size": 4},
        },
        {},
    ),
    "solo-learn": (
        lambda t, o: {
            "state_dict": prefixed(t, "backbone.")
            | prefixed(o, "momentum_backbone.")
            | _heads("projector.0.weight", "classifier.weight"),
            "epoch": 3,
        },
        {},
    ),
    "mmselfsup": (
        lambda t, o: {
            "state_dict": prefixed(t, "backbone.") | _heads("neck.fc0.weight", "head.fc.weight"),
            "meta": {},
        },
        {},
    ),
    "Spijkervet's SimCLR": (
        lambda t, o: prefixed(t, "encoder.") | _heads("projector.0.weight", "projector.2.weight"),
        ZERO_ONE,
    ),
    "SimCLR of Google, converted by tonylins": (
        lambda t, o: {"state_dict": t | _heads("fc.weight", "fc.bias")},
        {**ZERO_ONE, "encoder.padding": "same_pool"},
    ),
    "BYOL of DeepMind, converted by chigur": (
        lambda t, o: (
            {k: v for k, v in t.items() if "running" not in k and "tracked" not in k}
            | _heads("fc.weight", "fc.bias")
            | {k: v for k, v in t.items() if "running" in k}
        ),
        {"encoder.padding": "same"},
    ),
}


@pytest.fixture(scope="module")
def small():
    """A small encoder, tensors for it, those of another network, and its features."""
    module = encoder_of(**SMALL)
    tensors = tensors_of(module)
    other = {key: value + 1 for key, value in tensors.items()}
    return module, tensors, other


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_recognized_by_their_keys(name, small, tmp_path):
    module, tensors, other = small
    content, implied = FORMATS[name]
    (tmp_path / "weights.pth").write_bytes(torch_files.dumps(content(tensors, other)))
    found, variables = read(tmp_path / "weights.pth", module)
    assert found.format == name
    expected = {
        "encoder.name": "resnet18", "encoder.width": 8, "encoder.stem": "imagenet",
        "data.image_size": 224, "data.mean": "0.485,0.456,0.406", "data.std": "0.229,0.224,0.225",
    } | implied  # fmt: skip
    assert found.settings == expected
    back = names.to_tensors(variables, weights.family("resnet18").module_name)
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    unused = weights.unused(found, foreign.abstract(module, 32))
    assert not any("tracked" in key for key in unused)
    assert len(unused) + len(weights.used(found, foreign.abstract(module, 32))) == sum(
        "tracked" not in key for key in found.content.tensors
    )


def settings_of(path, **overrides):
    given = {"encoder.weights": str(path), **overrides}
    return settings.check(settings.of_evaluation("", None, given))


def without_counters(tensors):
    return {key: value for key, value in tensors.items() if "tracked" not in key}


# {what looks like a file that needs another padding, but is none: (content, format)}.
LOOKALIKES = {
    "PyTorch before 0.4.1, no counters": (
        lambda t: without_counters(t) | _heads("fc.weight", "fc.bias"),
        "torchvision",
    ),
    "a saved state_dict of torchvision": (
        lambda t: {
            "state_dict": {**t, "bn1.num_batches_tracked": np.array(7)} | _heads("fc.weight")
        },
        "torchvision",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalikes_of_converted_files(name, small, tmp_path):
    _, tensors, _ = small
    content, expected = LOOKALIKES[name]
    (tmp_path / "weights.pth").write_bytes(torch_files.dumps(content(tensors)))
    found = weights.find(str(tmp_path / "weights.pth"))
    assert found.format == expected
    assert "encoder.padding" not in found.settings
    assert found.settings["data.mean"] == "0.485,0.456,0.406"


@pytest.mark.parametrize(
    ("head", "expected"),
    [("projector.0.weight", "solo-learn"), ("classifier.weight", "solo-learn"),
     ("head.fc.weight", "mmselfsup"), ("other.weight", "unknown source")],
)  # fmt: skip
def test_only_solo_learn_pads_a_cifar_stem_by_two(head, expected, tmp_path):
    tensors = tensors_of(encoder_of(width=8, stem="cifar"))
    content = {"state_dict": prefixed(tensors, "backbone.") | _heads(head)}
    (tmp_path / "weights.ckpt").write_bytes(torch_files.dumps(content))
    found = weights.find(str(tmp_path / "weights.ckpt"))
    assert found.format == expected
    assert found.settings.get("encoder.padding") == ("solo" if expected == "solo-learn" else None)


# As lightly's examples save networks: {child: number} in ResNets of torchvision and of lightly.
NUMBERED = {
    "torchvision": {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7},
    "lightly": {"conv1": 0, "bn1": 1, "layer1": 2, "layer2": 3, "layer3": 4, "layer4": 5},
}


def numbered(tensors, prefix, library):
    def key_of(key):
        child, _, rest = key.partition(".")
        rest = rest.replace("downsample", "shortcut") if library == "lightly" else rest
        return f"{prefix}{NUMBERED[library][child]}.{rest}"

    return {key_of(key): value for key, value in tensors.items()}


@pytest.mark.parametrize("library", NUMBERED)
@pytest.mark.parametrize(
    ("online", "target", "head"),
    [("backbone.", "backbone_momentum.", "projection_head.layers.0.weight"),
     ("student_backbone.", "teacher_backbone.", "student_head.layers.0.weight")],
)  # fmt: skip
def test_numbered_children(library, online, target, head, small, tmp_path):
    module, tensors, other = small
    content = numbered(tensors, online, library) | numbered(other, target, library) | _heads(head)
    (tmp_path / "weights.ckpt").write_bytes(torch_files.dumps({"state_dict": content}))
    published = other if "student" in online else tensors
    for network, expected in (("auto", published), ("online", tensors), ("target", other)):
        found, variables = read(tmp_path / "weights.ckpt", module, network)
        assert found.format == "lightly"
        back = names.to_tensors(variables, weights.family("resnet18").module_name)
        for key in back.keys() - {key for key in back if "tracked" in key}:
            np.testing.assert_array_equal(back[key], expected[key], err_msg=key)
    safetensors.numpy.save_file(numbered(tensors, "", library), tmp_path / "bare.safetensors")
    _, variables = read(tmp_path / "bare.safetensors", module)
    back = names.to_tensors(variables, weights.family("resnet18").module_name)
    np.testing.assert_array_equal(back["layer4.1.conv2.weight"], tensors["layer4.1.conv2.weight"])


def test_guesses_by_counters_and_order_are_in_doubt(small, tmp_path):
    _, tensors, other = small
    for name, (content, implied) in FORMATS.items():
        (tmp_path / "weights.pth").write_bytes(torch_files.dumps(content(tensors, other)))
        doubt = weights.find(str(tmp_path / "weights.pth")).doubt
        assert bool(doubt) == ("converted" in name)
        if doubt:
            assert "set " in doubt and "encoder.padding=torch" in doubt
            assert ("data.mean=0.485,0.456,0.406" in doubt) == ("data.mean" in implied)


@pytest.mark.parametrize("copy", ["online_net.0.", "encoder_q.0."])
def test_mmselfsup_stores_its_backbone_twice(copy, small, tmp_path):
    module, tensors, other = small
    content = {
        "state_dict": prefixed(tensors, "backbone.") | prefixed(tensors, copy)
        | prefixed(other, "target_net.module.0.") | _heads("neck.0.weight")
    }  # fmt: skip
    (tmp_path / "weights.pth").write_bytes(torch_files.dumps(content))
    for network, expected in (("auto", tensors), ("target", other)):
        found, variables = read(tmp_path / "weights.pth", module, network)
        assert found.format == "mmselfsup"
        back = names.to_tensors(variables, weights.family("resnet18").module_name)
        np.testing.assert_array_equal(back["conv1.weight"], expected["conv1.weight"])


@pytest.mark.parametrize(
    ("name", "network"),
    [("MoCo v2", "target"), ("MoCo v3", "target"), ("DINO", "online"), ("lightly", "target"),
     ("solo-learn", "target")],
)  # fmt: skip
def test_the_other_network_is_read_on_request(name, network, small, tmp_path):
    module, tensors, other = small
    (tmp_path / "weights.pth").write_bytes(torch_files.dumps(FORMATS[name][0](tensors, other)))
    _, variables = read(tmp_path / "weights.pth", module, network)
    back = names.to_tensors(variables, weights.family("resnet18").module_name)
    np.testing.assert_array_equal(back["conv1.weight"], other["conv1.weight"])


def test_lightlys_dino_has_its_teacher_under_backbone(small, tmp_path):
    module, tensors, other = small
    content = {
        "state_dict": prefixed(tensors, "backbone.")
        | prefixed(other, "student_backbone.")
        | _heads("projection_head.layers.0.weight")
    }
    (tmp_path / "weights.ckpt").write_bytes(torch_files.dumps(content))
    for network, expected in (("auto", tensors), ("target", tensors), ("online", other)):
        found, variables = read(tmp_path / "weights.ckpt", module, network)
        assert found.format == "lightly"
        back = names.to_tensors(variables, weights.family("resnet18").module_name)
        np.testing.assert_array_equal(back["conv1.weight"], expected["conv1.weight"])


def test_solo_learns_cifar_stem_is_padded_by_two(small, tmp_path):
    module = encoder_of(width=8, stem="cifar", padding="solo")
    tensors = tensors_of(module)
    content = {"state_dict": prefixed(tensors, "backbone.") | _heads("classifier.weight")}
    (tmp_path / "weights.ckpt").write_bytes(torch_files.dumps(content))
    found, variables = read(tmp_path / "weights.ckpt", module)
    assert found.settings["encoder.padding"] == "solo" and found.settings["data.image_size"] == 32
    images = torchvision_resnets.pixels(32)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    first = variables["params"]["conv1"]["kernel"]
    expected = jax.lax.conv_general_dilated(
        padded, first, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert expected.shape[1:3] == (34, 34)
    _, state = module.apply(
        variables, images, train=False, capture_intermediates=True, mutable=["intermediates"]
    )
    got = state["intermediates"]["conv1"]["__call__"][0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_wrappers_and_half_precision(prefix, legacy, small, tmp_path):
    module, tensors, _ = small
    half = {key: value.astype(np.float16) for key, value in tensors.items()}
    data = torch_files.dumps(prefixed(half, prefix), legacy)
    (tmp_path / "weights.pt").write_bytes(data)
    _, variables = read(tmp_path / "weights.pt", module)
    back = names.to_tensors(variables, weights.family("resnet18").module_name)
    for key, value in half.items():
        np.testing.assert_array_equal(back[key], value.astype(back[key].dtype), err_msg=key)
        assert back[key].dtype in (np.float32, np.int64)


def test_a_folder_of_timm_brings_its_preprocessing(small, tmp_path):
    _, tensors, _ = small
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    cfg = {
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.4, 0.5], "input_size": [3, 288, 288],
        "interpolation": "bicubic", "crop_pct": 0.95,
    }  # fmt: skip
    for content in (
        {"architecture": "resnet18", "pretrained_cfg": cfg},
        {"architecture": "tv_resnet18.a1_in1k", **cfg},  # as older versions wrote it
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        config = settings_of(tmp_path)
        assert (config.data.mean, config.data.std) == ("0.5,0.5,0.5", "0.5,0.4,0.5")
        assert config.data.image_size == 288
        assert (config.features.interpolation, config.features.crop_pct) == ("bicubic", 0.95)


def of_timm(preprocessing):
    return {"architecture": "resnet18", "pretrained_cfg": preprocessing}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"architecture": "resnetaa18"}, "names the architecture resnetaa18, but gsjax would"),
        ({"architecture": "resnet34"}, "architecture resnet34, .* weights as resnet18"),
        (of_timm({"input_size": 5}), "an impossible pretrained_cfg"),
        (of_timm({"input_size": []}), "an impossible pretrained_cfg"),
        (of_timm({"mean": 5}), "an impossible pretrained_cfg"),
        (of_timm({"crop_pct": None}), "an impossible pretrained_cfg"),
        (of_timm("x"), "an impossible pretrained_cfg"),
        (of_timm({"crop_pct": 1e-9}), r"features\.crop_pct is 1e-09; it must be 0 or at least"),
        (of_timm({"mean": [1]}), r"config\.json: data\.mean"),
        ({"gsjax": {"settings": {"knn.k": 1}}}, "has knn.k, which is no setting of an encoder"),
        ({"gsjax": {"settings": {"encoder.weights": "x"}}}, "has encoder.weights, which is no"),
    ],
)  # fmt: skip
def test_what_a_folder_says_is_checked(content, message, small, tmp_path):
    _, tensors, _ = small
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        settings_of(tmp_path)


def test_deeply_nested_files_of_a_folder_are_refused(small, tmp_path):
    nested = "[" * 100_000
    (tmp_path / "model.safetensors.index.json").write_text(nested)
    with pytest.raises(UserError, match="cannot be read as weights"):
        settings_of(tmp_path)
    safetensors.numpy.save_file(small[1], tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(nested)
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        settings_of(tmp_path)


def test_sharded_safetensors(small, tmp_path):
    module, tensors, _ = small
    keys = sorted(tensors)
    parts = {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}
    for name, part in parts.items():
        safetensors.numpy.save_file({key: tensors[key] for key in part}, tmp_path / name)
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    _, variables = read(tmp_path, module)
    back = names.to_tensors(variables, weights.family("resnet18").module_name)
    np.testing.assert_array_equal(back["layer4.1.conv2.weight"], tensors["layer4.1.conv2.weight"])
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors|No such file"):
        read(tmp_path, module)
    for fault in ({"x": "../a.safetensors"}, {"x": 3}, [], None):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": fault}))
        with pytest.raises(UserError, match="cannot be read as weights"):
            read(tmp_path, module)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layer2.0.bn1.running_var"), r"layer2\.0\.bn1\.running_var is missing"),
        (lambda t: t.update({"layer3.1.conv2.weight": np.zeros((32, 32, 1, 1), np.float32)}),
         r"layer3\.1\.conv2\.weight is \[32, 32, 1, 1\], but should be \[32, 32, 3, 3\]"),
        (lambda t: t.update({"conv1.weight": np.zeros((3, 3), np.float32)}),
         r"conv1\.weight is \[3, 3\], but should have 4 dimensions"),
        (lambda t: t["bn1.bias"].__setitem__(0, np.nan),
         r"bn1\.bias holds values that are not finite"),
        (lambda t: t.update({"layer1.0.se.fc1.weight": np.zeros((3, 3), np.float32)}),
         r"layer1\.0\.se\.fc1\.weight belongs to an architecture that gsjax does not have"),
        (lambda t: t.update({"layer2.0.\x1b[31m\nx": np.zeros((3, 3), np.float32)}),
         r"layer2\.0\.\\x1b\[31m\\nx belongs"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_key(change, message, small, tmp_path):
    module, tensors, _ = small
    altered = {key: value.copy() for key, value in tensors.items()}
    change(altered)
    content = {"state_dict": prefixed(altered, "module.encoder_q.")}
    (tmp_path / "weights.pth").write_bytes(torch_files.dumps(content))
    with pytest.raises(UserError, match=rf"weights\.pth: state_dict\.module\.encoder_q\.{message}"):
        read(tmp_path / "weights.pth", module)


def test_files_without_an_encoder_are_refused(small, tmp_path):
    module, tensors, other = small
    path = tmp_path / "weights.pth"
    for content, message in (
        (_heads("fc.weight"), "holds no encoder that gsjax knows; its keys: fc.weight"),
        ({}, "holds no tensors: save a model's state_dict"),
        (prefixed(tensors, "one.") | prefixed(other, "two."), "several encoders, under 'one.'"),
    ):
        path.write_bytes(torch_files.dumps(content))
        with pytest.raises(UserError, match=message):
            read(path, module)
    path.write_bytes(torch_files.dumps(tensors))
    with pytest.raises(UserError, match=r"encoder\.network=target: .* no such network"):
        read(path, module, "target")
    with pytest.raises(UserError, match="there is no file"):
        read(tmp_path / "nowhere.pth", module)
    with pytest.raises(UserError, match="no weights in"):
        read(tmp_path, module)


@pytest.mark.parametrize("padding", ["torch", "same_pool", "same"])
def test_padding_as_in_tensorflow(padding):
    """At an even side SAME pads the stem's pool and strided convolutions after, not before."""
    module = resnet.ResNet((1, 1), resnet.BasicBlock, 8, "imagenet", padding=padding)
    images = torchvision_resnets.pixels(64)
    variables = module.init(jax.random.key(0), images, train=True)
    _, state = module.apply(
        variables, images, train=False, capture_intermediates=True, mutable=["intermediates"]
    )
    got = state["intermediates"]["conv1"]["__call__"][0]
    pads = [(2, 3)] * 2 if padding == "same" else [(3, 3)] * 2
    expected = jax.lax.conv_general_dilated(
        images, variables["params"]["conv1"]["kernel"], (2, 2), pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    x = np.asarray(state["intermediates"]["bn1"]["__call__"][0])
    side = (0, 1) if padding != "torch" else (1, 1)
    framed = np.pad(x, ((0, 0), side, side, (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(framed, (3, 3), (1, 2))[:, ::2, ::2]
    pooled = windows.max(axis=(-2, -1))
    for train in (True, False):
        got = resnet.max_pool(x, train, same=padding != "torch")
        np.testing.assert_array_equal(got, pooled)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays(protocol, small, tmp_path):
    module, tensors, _ = small
    turned = {key: np.asfortranarray(value) for key, value in tensors.items()}
    beside = {"text": np.array(["a"]), "objects": np.array([{}, 3]), "number": np.float32(3)}
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"model": turned, **beside}, protocol))
    found, variables = read(tmp_path / "weights.pkl", module)
    assert found.content.tensors.keys() == {f"model.{key}" for key in tensors}
    back = names.to_tensors(variables, weights.family("resnet18").module_name)
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


# Hostile files.


class Touch:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["whole", "beside", "key"])
def test_code_in_a_pickle_is_not_run(place, legacy, small, tmp_path):
    module, tensors, _ = small
    bad = Touch(tmp_path / "touched")
    content = {"whole": bad, "beside": {**tensors, "x": bad}, "key": {"y": [{"z": (bad,)}]}}[place]
    path = tmp_path / "weights.pth"
    path.write_bytes(torch_files.dumps(content, legacy))
    with pytest.raises(UserError, match="a call of '(posix|os).system', which is no tensor"):
        read(path, module)
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="a call of '(posix|os).system'"):
        read(tmp_path / "weights.pkl", module)
    assert not (tmp_path / "touched").exists()


def test_opcodes_that_call_are_refused(tmp_path):
    for program in (
        b"cos\nsystem\n(S'touch x'\ntR.",
        b"(S'touch x'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch x'\no.",
        b"\x80\x02cbuiltins\neval\nU\x011\x85R.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x01x\x85R.",
    ):
        with pytest.raises(pickles.UnsafePickle, match="a call of"):
            pytorch.load(program)
    for program in (b"\x82\x01.", b"\x97.", b"Pabc\n."):
        with pytest.raises(pickles.UnsafePickle):
            pytorch.load(program)


def test_bombs_stay_small():
    archived = io.BytesIO()
    with zipfile.ZipFile(archived, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(ValueError, match="compressed"):
        pytorch.load(archived.getvalue())
    # Strides of 0 repeat an element: torch.zeros(1).expand(2**31 - 1) is 4 bytes in a file.
    shape, strides = b"M\xe8\x03\x85", b"K\x01\x85"

    def widen(program):
        assert program.count(shape) == program.count(strides) == 1
        return program.replace(shape, b"J\xff\xff\xff\x7f\x85").replace(strides, b"K\x00\x85")

    entry = np.zeros(1000, np.float32)
    (tensor,) = pytorch.load(torch_files.dumps({"x": entry}, change=widen)).tensors.values()
    assert tensor.shape == (2**31 - 1,)
    with pytest.raises(ValueError, match="longer than its data"):
        tensor.array()
    # Thousands of calls on the same memoized list or text.
    many = b"\x80\x02(" + b"K\x01" * 5000 + b"lq\x00"
    for function in (b"ctorch\nSize\n", b"ccollections\nOrderedDict\n"):
        with pytest.raises(ValueError, match="damaged pickle"):
            pytorch.load(many + b"(" + (function + b"h\x00\x85R") * 5000 + b"l.")
    text = b"\x80\x02X\x88\x13\x00\x00" + b"a" * 5000 + b"q\x000("
    with pytest.raises(ValueError, match="more than it holds"):
        pytorch.load(text + b"c_codecs\nencode\nh\x00\x85R" * 5000 + b"l.")
    nested = b"}" + b"(U\x01a}" * 100_000 + b"u" * 100_000 + b"."
    assert pytorch.load(nested).tensors == {}
    doubled = b")" + b"2\x86" * 200 + b"."
    assert pytorch.load(doubled).tensors == {}
    as_key = b"})" + b"2\x86" * 200 + b"K\x01s."
    assert pytorch.load(as_key).tensors == {}
    far = b"]r\xff\xff\xff\xff."
    assert pytorch.load(far).tensors == {}


def test_a_tensor_beyond_its_data_is_named(small, tmp_path):
    module, tensors, _ = small
    offset, first = b"K\x00(K\x08K\x03K\x07K\x07t", tensors["conv1.weight"].shape
    assert first == (8, 3, 7, 7)

    def shift(program):
        assert program.count(offset) == 1
        return program.replace(offset, b"K\x09" + offset[2:])

    (tmp_path / "weights.pth").write_bytes(torch_files.dumps(tensors, change=shift))
    with pytest.raises(UserError, match=r"pth: conv1\.weight cannot be read: a tensor is longer"):
        read(tmp_path / "weights.pth", module)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "it is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull fetches"),
        (torch_files.dumps({"a": np.ones(1000, np.float32)})[:-30], "it ends early; download"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_what_else_a_file_may_be(data, message, suffix, tmp_path):
    (tmp_path / f"weights.{suffix}").write_bytes(data)
    with pytest.raises(UserError, match=message):
        reader.read(str(tmp_path / f"weights.{suffix}"))


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "weights.pth")
    for path in (tmp_path / "weights.pth", "/dev/zero"):
        with pytest.raises(UserError, match="is not a regular file"):
            reader.read(str(path))


def header(content, length=None):
    text = json.dumps(content).encode() if not isinstance(content, bytes) else content
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", bytes(8), header({}, 2**60), header({}, 10**6), header(b"{"),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
        header({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}) + bytes(12),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}) + bytes(8),
        header({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": 3}), header([1]),
    ],
)  # fmt: skip
def test_false_headers_of_safetensors(data, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="cannot be read as weights"):
        reader.read(str(tmp_path / "weights.safetensors"))


SEEDS = [torch_files.dumps({"a": {"b": np.ones((2, 3), np.float32)}}, legacy) for legacy in (0, 1)]


@given(st.data())
@hypothesis_settings(max_examples=300, deadline=None)
def test_damaged_files_end_in_an_error_or_in_tensors(data):
    """Flipped, cut, repeated and inserted bytes."""
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
        if kind == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(max_size=9))
        elif kind == "repeat":
            content[at:at] = content[at : at + data.draw(st.integers(0, 40))]
        elif at:
            del content[at : at + data.draw(st.integers(0, 9))]
    check_is_safe(bytes(content))


@given(st.binary(max_size=60))
@hypothesis_settings(max_examples=500, deadline=None)
def test_arbitrary_pickles_end_in_an_error_or_in_tensors(program):
    check_is_safe(program)
    check_is_safe(b"\x80\x02" + program + b".")


def check_is_safe(content):
    try:
        loaded = pytorch.load(content)
        for tensor in loaded.tensors.values():
            assert tensor.array().nbytes <= len(content)
    except (ValueError, pickles.UnsafePickle):
        pass

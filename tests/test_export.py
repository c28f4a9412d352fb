"""The encoder leaves gsjax and comes back: export, encoder.weights, encoder.init, load_encoder."""

import json
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from test_weights import encoder_of, tensors_of
from tiny_folders import write_classes, write_retrieval
from trainings import SMALL

import gsjax
from gsjax.config import defaults, settings
from gsjax.data import sources
from gsjax.errors import UserError
from gsjax.evaluate import (
    encoder_reader,
    evaluation,
    export,
    knn,
    linear,
    model_card,
    pairs,
    programs,
    results,
    retrieval,
    transfer,
)
from gsjax.models import create_encoder, fit_image_size, weights
from gsjax.models.weights import names, pytorch
from gsjax.runtime import parallel
from gsjax.train.pretrain import pretrain

RESNET = SMALL | {
    "encoder.name": "resnet18", "encoder.stem": "imagenet", "num_steps": "1",
    "log.example_pairs": "0", "similarity.measure": "none", "knn.every_epochs": "0",
    "data.source": "folder", "data.split": "train", "data.labeled_split": "",
    "data.test_split": "", "data.image_size": "32",
}  # fmt: skip


def configured(changes):
    config = settings.load(None)
    settings.override(config, RESNET | changes)
    return settings.check(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """The work directory of a short pre-training of a small ResNet, exported in all formats."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    pretrain(configured({"data.data_dir": str(data / "three")}), str(workdir))
    changes = {
        "export.stablehlo": "true", "export.detectron2": "true", "export.license": "cc-by-4.0",
    }  # fmt: skip
    evaluate(export, workdir, changes)
    return workdir


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_classes(folder / "three", 20)
    write_retrieval(folder)
    return folder


def evaluate(job, workdir, changes):
    config = settings.check(settings.of_evaluation(str(workdir), None, changes))
    job.run(config, str(workdir))
    return results.read(workdir / "results" / f"{job.__name__.rpartition('.')[2]}.json")


def test_files_and_model_card(run):
    folder = run / "export"
    assert {file.name for file in folder.iterdir()} == {
        "config.json", "model.safetensors", "README.md", "encoder.stablehlo", "detectron2.pkl",
    }  # fmt: skip
    card = (folder / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: gsjax\nlicense: "cc-by-4.0"\n')
    assert "datasets:" not in card and "- self-supervised-learning\n" in card
    assert "# resnet18, pre-trained without labels\n" in card
    for expected in ("| method | SimCLR, no graded similarity |", "1 steps of 32 images, seed 5",
                     "Resize the short side to 32 (bilinear)", "`encoder.stablehlo`"):  # fmt: skip
        assert expected in card
    assert "onnx" not in card and "timm.create_model" not in card
    content = json.loads((folder / "config.json").read_text())
    assert "architecture" not in content and content["num_features"] == 32
    assert content["gsjax"]["settings"]["encoder.width"] == 4


def test_the_command_of_the_card_trains_the_same_encoder(run):
    card = (run / "export" / "README.md").read_text()
    command = card.split("Trained by\n\n```\n")[1].split("\n```")[0]
    assert "--config.data.labeled_split=''" in command and "--config.data.test_split=''" in command
    module, *arguments = shlex.split(command.replace("\\\n", ""))[2:]
    assert module == "gsjax.main" and "--config.data.data_dir=DATA_DIR" in arguments
    rest, overrides = settings.split_overrides(arguments)
    assert rest == ["--workdir", "WORKDIR"]
    config = settings.load(None)
    settings.override(config, overrides)
    recorded = json.loads((run / "config.json").read_text())["config"]
    assert settings.shaping(settings.check(config)) == settings.shaping(recorded)


def test_the_card_of_other_weights_claims_nothing(run, tmp_path):
    evaluate(export, tmp_path, {"encoder.weights": str(run / "export")})
    card = (tmp_path / "export" / "README.md").read_text()
    assert "# resnet18\n" in card and "read from `model.safetensors` (format: gsjax)" in card
    for absent in ("without labels", "self-supervised", "datasets:", "Trained by", "SimCLR"):
        assert absent not in card


def test_a_second_export_replaces_the_first(run, tmp_path, monkeypatch):
    changes = {"encoder.weights": str(run / "export")}
    evaluate(export, tmp_path, changes | {"export.detectron2": "true"})
    (tmp_path / "export" / "mine.txt").write_text("kept")
    evaluate(export, tmp_path, changes | {"export.stablehlo": "true"})
    assert {file.name for file in (tmp_path / "export").iterdir()} == {
        "config.json", "model.safetensors", "README.md", "encoder.stablehlo", "mine.txt",
    }  # fmt: skip
    before = {file.name: file.read_bytes() for file in (tmp_path / "export").iterdir()}
    broken = programs.stablehlo

    def wrong(encode, size):
        return broken(lambda images: 1.01 * encode(images), size)

    monkeypatch.setattr(programs, "stablehlo", wrong)
    with pytest.raises(UserError, match=r"encoder\.stablehlo would give other representations"):
        evaluate(export, tmp_path, changes | {"export.stablehlo": "true", "data.mean": "0,0,0"})
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "export").iterdir()}
    assert not (tmp_path / "export.new").exists()


def test_a_standard_encoder_can_be_opened_by_timm(tmp_path, data):
    """What timm reads is in config.json; that it gives the same features was measured with timm."""
    tensors = tensors_of(encoder_of())
    safetensors.numpy.save_file(tensors, tmp_path / "weights.safetensors")
    changes = {
        "encoder.weights": str(tmp_path / "weights.safetensors"), "data.image_size": "64",
        "features.interpolation": "bicubic", "features.crop_pct": "0.8",
    }  # fmt: skip
    evaluate(export, tmp_path / "run", changes)
    folder = tmp_path / "run" / "export"
    content = json.loads((folder / "config.json").read_text())
    assert (content["architecture"], content["num_features"]) == ("resnet18", 512)
    assert content["pretrained_cfg"] == {
        "num_classes": 0, "input_size": [3, 64, 64], "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225], "interpolation": "bicubic", "crop_pct": 0.8,
        "first_conv": "conv1", "classifier": "fc",
    }  # fmt: skip
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    assert stored.keys() == tensors.keys()
    assert stored["bn1.num_batches_tracked"].dtype == np.int64
    for key, value in tensors.items():
        np.testing.assert_array_equal(stored[key], value)
    assert "timm.create_model" in (folder / "README.md").read_text()


JOBS_THAT_FIT = ("linear", "transfer")
JOBS = {
    "knn": (knn, {"knn.k": "5"}),
    "linear": (linear, {"linear.num_epochs": "1", "linear.batch_size": "32"}),
    "transfer": (transfer, {"transfer.datasets": "three", "transfer.max_iterations": "20"}),
    "retrieval": (retrieval, {"retrieval.datasets": "toy", "retrieval.pictures": "0"}),
}


@pytest.mark.parametrize(
    "job",
    ["knn", "retrieval", *(pytest.param(job, marks=pytest.mark.slow) for job in JOBS_THAT_FIT)],
)
def test_a_file_gives_the_scores_of_the_checkpoint(job, run, data):
    module, changes = JOBS[job]
    changes = changes | {
        "data.data_dir": str(data / "three"), "features.keep": "false",
        "data.labeled_split": "train", "data.test_split": "test",
        "transfer.data_dir": str(data), "retrieval.data_dir": str(data),
    }  # fmt: skip
    evaluate(module, run, changes)
    ours, theirs = evaluate(
        module, run, changes | {"encoder.weights": str(run / "export"), "data.source": "folder"}
    )
    assert ours["step"] == 1 and theirs["step"] is None and theirs["weights"] == "gsjax"
    assert ours["scores"] == theirs["scores"] and ours["protocol"] == theirs["protocol"]


def test_diagnostics_compare_representations_if_there_are_no_heads(run):
    changes = {"encoder.weights": str(run / "export")}
    config = settings.check(settings.of_evaluation("", None, changes))
    mesh = parallel.create_mesh(4)
    loaded = encoder_reader.read_encoder(config, run, mesh, heads=True)
    encoder = evaluation.as_encoder(config, loaded, mesh)
    method, params, extra = encoder.pretrained
    assert method.distance == "|h_i - h_j|" and not method.is_graded
    drawn = pairs.draw(encoder, config, sources.open_source(config.data, "test"), 16)
    assert drawn.anchor.shape == (16, 2, 32)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    anchor, target = method.embed(params, extra, images)
    expected = encoder.module.apply(encoder.variables, images, train=False).pooled
    np.testing.assert_allclose(anchor, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(anchor, target)


def test_programs_run_without_gsjax(run):
    """In a process that imports JAX and NumPy alone."""
    code = (
        "import sys, numpy as np\n"
        "from jax import export\n"
        "program = export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))\n"
        "images = np.load(sys.argv[2])\n"
        "assert not any(name.startswith(('gsjax', 'flax')) for name in sys.modules)\n"
        "np.save(sys.argv[3], program.call(images))\n"
    )
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    np.save(run / "images.npy", images)
    paths = [run / "export" / "encoder.stablehlo", run / "images.npy", run / "features.npy"]
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True)
    ours = gsjax.load_encoder(run).encode(images)
    np.testing.assert_allclose(np.load(paths[2]), ours, atol=1e-4 * np.abs(ours).max())


def test_detectron2_names(run):
    stored = pytorch.load((run / "export" / "detectron2.pkl").read_bytes()).tensors
    found = {key.removeprefix("model.") for key in stored}
    assert {"stem.conv1.weight", "stem.conv1.norm.running_var", "res2.0.conv1.weight",
            "res5.1.conv2.norm.bias", "res3.0.shortcut.weight",
            "res3.0.shortcut.norm.weight"} < found  # fmt: skip
    assert not any("layer" in key or "bn" in key or "downsample" in key for key in found)


# In Python.


def test_load_encoder_takes_every_kind_of_path_and_of_images(run, tmp_path):
    generator = np.random.default_rng(2)
    images = [generator.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((50, 40), (33, 90))]
    encoder = gsjax.load_encoder(run)
    expected = encoder.encode(images)
    assert expected.shape == (2, 32) and expected.dtype == np.float32
    for path in (run / "checkpoints" / "1", run / "export", run / "export" / "model.safetensors"):
        other = gsjax.load_encoder(path, **({"image_size": 32} if path.suffix else {}))
        np.testing.assert_allclose(other.encode(images), expected, rtol=1e-5, atol=1e-6)
    batch = np.stack([encoder.preprocess(image) for image in images])
    assert batch.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(encoder.encode(batch), expected)
    maps = encoder.maps(images)
    assert maps.shape == (2, 1, 1, 32)
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), expected, rtol=1e-6)
    paths = [tmp_path / "a.png", str(tmp_path / "b.png")]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    np.testing.assert_allclose(encoder.encode(paths), expected, rtol=1e-5, atol=1e-6)
    pillow = [Image.fromarray(image) for image in images]
    for same in (
        iter(images), tuple(paths), (path for path in paths), jax.numpy.asarray(batch), pillow,
        [paths[0], images[1]],
    ):  # fmt: skip
        np.testing.assert_allclose(encoder.encode(same), expected, rtol=1e-5, atol=1e-6)
    for path in (run, run / "export"):
        other = gsjax.load_encoder(path, mean=(0, 0, 0), std=[1, 1, 1], image_size=40)
        assert other.info["mean"] == (0, 0, 0) and other.info["image_size"] == 40
        assert other.encode(images).shape == (2, 32)
    many = gsjax.load_encoder(run, batch_size=8)
    np.testing.assert_allclose(
        many.encode(images * 10 + images[:1]), np.concatenate([np.tile(expected, (10, 1)),
        expected[:1]]), rtol=1e-5, atol=1e-6,
    )  # fmt: skip
    assert encoder.info["format"] == "gsjax" and encoder.info["short_side"] == 32


def test_images_that_cannot_be_encoded_are_named(run, tmp_path):
    encoder = gsjax.load_encoder(run)
    for images, message in (
        ([], "no images"),
        (np.zeros((0, 32, 32, 3), np.uint8), "no images"),
        ("a.png", "must be a list of arrays, a list of paths or a batch, not str"),
        (tmp_path, "a batch, not PosixPath"),
        (None, "a batch, not NoneType"),
        ({"a": 1}, "a batch, not dict"),
        (np.zeros(()), r"a batch, not float64 \[\]"),
        ([np.zeros((4, 4), np.uint8)], r"a Pillow image or a path, not uint8 \[4, 4\]"),
        ([np.zeros((4, 4, 3))], "not float64"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"a batch must be uint8 \[N, 32, 32, 3\]"),
        (["nowhere.png"], r"there is no file .*nowhere\.png"),
        ([tmp_path], f"{tmp_path} is a folder"),
        ([np.zeros((4, 4, 3), np.uint8), "nowhere.png"], r"there is no file .*nowhere\.png"),
    ):
        with pytest.raises(UserError, match=message):
            encoder.encode(images)
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(gsjax.UserError, match=r"torn\.png cannot be read as an image"):
        encoder.encode([tmp_path / "torn.png"])
    for path, arguments, message in (
        ("nowhere", {}, "there is no file"),
        ("https://host/weights.pth", {}, "neither a local path nor a bucket; download it first"),
        ("", {}, "needs a path"),
        (run, {"batch_size": 0}, "batch_size must be a positive whole number, not 0"),
        (run, {"batch_size": "64"}, "not '64'"),
        (run / "export", {"encoder.dtype": "float64"}, "contradicts"),
    ):
        with pytest.raises(UserError, match=message):
            gsjax.load_encoder(path, **arguments)
    with pytest.raises(UserError, match="unknown setting data.image_sise"):
        gsjax.load_encoder(run / "export", image_sise=3)


def test_pretrain_from_python_resumes(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # configs are found from anywhere
    changes = {
        "encoder.name": "toy", "data.image_size": 16, "batch_size": 8, "projector.hidden_dim": 8,
        "log.example_pairs": 0, "encoder.width": 4, "augment.blur": 0.0,
    }  # fmt: skip
    arguments = {"workdir": "mine", "config": "simclr_gs_cifar10", **changes}
    assert str(gsjax.pretrain(data / "three", num_steps=2, **arguments)) == "mine"
    with pytest.raises(UserError, match="num_steps: 2 -> 3"):
        gsjax.pretrain(data / "three", num_steps=3, **arguments)
    gsjax.pretrain(data / "three", num_steps=2, **arguments)
    config = json.loads((tmp_path / "mine" / "config.json").read_text())["config"]
    assert config["similarity"]["measure"] == "ioa" and config["data"]["source"] == "folder"
    with pytest.raises(UserError, match="did you mean --config simclr_gs_cifar10"):
        gsjax.pretrain(data, workdir="other", config="simclr_gs_cifar")


def test_a_vision_transformer_leaves_and_comes_back_at_another_image_size(data, tmp_path, capsys):
    """timm creates it from `model_args`; its positions are interpolated for the new run."""
    vit = {
        "encoder.name": "vit_tiny", "encoder.depth": "1", "encoder.patch_size": "8",
        "encoder.pool": "mean", "encoder.heads": "6", "data.data_dir": str(data / "three"),
    }  # fmt: skip
    pretrain(configured(vit), str(tmp_path / "run"))
    evaluate(export, tmp_path / "run", {"export.stablehlo": "true"})
    folder = tmp_path / "run" / "export"
    content = json.loads((folder / "config.json").read_text())
    assert content["architecture"] == "vit_tiny_patch16_224" and content["global_pool"] == "avg"
    assert content["model_args"] == {
        "img_size": 32, "patch_size": 8, "depth": 1, "num_heads": 6, "global_pool": "avg",
        "fc_norm": False,
    }  # fmt: skip
    card = (folder / "README.md").read_text()
    assert "| encoder | name vit_tiny, patch size 8, depth 1 |" in card
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    ours, back = (gsjax.load_encoder(str(tmp_path / name)) for name in ("run", "run/export"))
    file = gsjax.load_encoder(str(folder / "model.safetensors"))  # next to its config.json
    for encoder in (back, file):
        np.testing.assert_allclose(encoder.encode(images), ours.encode(images), atol=1e-5)
    with pytest.raises(UserError, match=r"export.detectron2: Detectron2 has no names for vit_tiny"):
        evaluate(export, tmp_path / "run", {"export.detectron2": "true"})
    changes = vit | {
        "encoder.init": str(folder), "data.image_size": "48", "encoder.drop_path": "0.1",
        "optimizer.learning_rate": "0", "method": "byol", "target.momentum": "0.5",
    }  # fmt: skip
    state = pretrain(configured(changes), str(tmp_path / "other"))
    assert "with new heads" in capsys.readouterr().out
    expected = fit_image_size(
        create_encoder(configured(changes)), jax.device_get(ours._encoder.variables), 48
    )
    for params in (state.params, state.extra["target"]["params"]):
        jax.tree.map(np.testing.assert_allclose, params["encoder"], expected["params"])
    pretrain(configured(changes), str(tmp_path / "other"))
    assert "encoder.init is ignored: the run is at step 1" in capsys.readouterr().out
    evaluate(export, tmp_path / "other", {})
    assert "| started from | `export` |" in (tmp_path / "other/export/README.md").read_text()
    with pytest.raises(UserError, match="encoder.heads=6, but this run has 3"):
        pretrain(configured(changes | {"encoder.heads": "3"}), str(tmp_path / "third"))


# Starting from other weights.


@pytest.mark.slow  # the test of a vision transformer starts BYOL from one
@pytest.mark.parametrize("method", ["mocov2", "simclr", "byol"])
def test_pretraining_starts_from_an_encoder(method, run, data, tmp_path, capsys):
    changes = {
        "method": method, "encoder.init": str(run / "export"), "queue.size": "64",
        "optimizer.learning_rate": "0", "optimizer.weight_decay": "0", "target.momentum": "0.5",
    }  # fmt: skip
    config = configured(changes | {"data.data_dir": str(data / "three")})
    state = pretrain(config, str(tmp_path))
    assert "with new heads" in capsys.readouterr().out
    found = weights.find(str(run / "export"))
    back = names.to_tensors(
        {"params": state.params["encoder"], "batch_stats": {}},
        weights.family("resnet18").module_name,
    )
    for key, value in back.items():
        np.testing.assert_array_equal(value, found.content.tensors[key].array(), err_msg=key)
    if method != "simclr":
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.device_get(state.extra["target"]["params"]["encoder"]),
            jax.device_get(state.params["encoder"]),
        )
    pretrain(config, str(tmp_path))
    assert "encoder.init is ignored: the run is at step 1" in capsys.readouterr().out
    recorded = json.loads((tmp_path / "config.json").read_text())["config"]["encoder"]["init"]
    assert recorded == str(run / "export")

    evaluate(
        knn, tmp_path, {"data.labeled_split": "train", "data.test_split": "test", "knn.k": "7"}
    )
    evaluate(export, tmp_path, {})
    card = (tmp_path / "export" / "README.md").read_text()
    assert "# resnet18\n" in card and "| started from | `export` |" in card
    assert "| k 7, temperature 0" in card


def test_another_architecture_is_refused(run, data, tmp_path):
    changes = {"encoder.init": str(run), "encoder.width": "8"}
    config = configured(changes | {"data.data_dir": str(data / "three")})
    with pytest.raises(UserError, match=r"has encoder\.width=4, but this run has 8"):
        pretrain(config, str(tmp_path))
    with pytest.raises(UserError, match=r"encoder\.width=8 contradicts"):
        settings.of_evaluation(
            "", None, {"encoder.weights": str(run / "export"), "encoder.width": "8"}
        )
    with pytest.raises(UserError, match="each name an encoder"):
        settings.of_evaluation("", None, {"encoder.weights": str(run), "checkpoint.load": "1"})


def test_pretraining_refuses_weights_of_evaluations(run, data, tmp_path):
    changes = {"encoder.weights": str(run / "export"), "data.data_dir": str(data / "three")}
    with pytest.raises(UserError, match=r"pre-training starts from encoder\.init"):
        pretrain(configured(changes), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_run_without_checkpoint_is_recognized(run, tmp_path):
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"no checkpoint in .*; train first|no checkpoint"):
        gsjax.load_encoder(tmp_path)


def test_an_evaluation_says_itself_what_it_evaluates(run, tmp_path):
    content = json.loads((run / "config.json").read_text())
    content["config"]["encoder"] |= {"weights": str(run / "export"), "network": "target"}
    content["config"]["checkpoint"]["load"] = str(run / "checkpoints" / "1")
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = settings.of_evaluation(str(tmp_path), None, {})
    assert (config.encoder.weights, config.encoder.network) == ("", "auto")
    assert config.checkpoint.load == "latest"


def test_settings_of_an_exported_folder_are_checked(run, tmp_path):
    content = json.loads((run / "export" / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(
        (run / "export" / "model.safetensors").read_bytes()
    )
    for change, message in (
        ({"encoder.levels": 3}, "encoder.levels, a setting unknown"),
        ({"data.image_size": "many"}, "data.image_size is 'many'"),
        ({"data.mean": "0,0"}, "data.mean is '0,0'"),
    ):
        content["gsjax"]["settings"] |= change
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            settings.of_evaluation("", None, {"encoder.weights": str(tmp_path)})
        for key in change:
            del content["gsjax"]["settings"][key]
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read"):
        settings.of_evaluation("", None, {"encoder.weights": str(tmp_path)})


def test_onnx_gives_the_same_representations(run):
    """With the extra `onnx`; without it, the job says what to install."""
    changes = {"encoder.weights": str(run / "export"), "export.onnx": "true"}
    try:
        import jax2onnx  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"pip install 'gsjax\[onnx\]'"):
            evaluate(export, run.parent / "onnx", changes)
        return
    evaluate(export, run.parent / "onnx", changes)
    assert (run.parent / "onnx" / "export" / "encoder.onnx").exists()


def test_the_card_describes_the_views():
    run = settings.flatten(defaults.get_config())
    assert model_card._views(run) == "32 x 32 pixels"
    run |= {"crops.local_views": 4, "crops.max_overlap": 0.2}
    expected = "32 x 32 pixels, and 4 local ones of 14 x 14, iou from 0 to 0.2"
    assert model_card._views(run) == expected

"""Fine-tuning: labels, learning rates, the step, the job and its export, against oracles."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from test_extensions import Patches
from toy_encoder import ToyEncoder
from trainings import final_state, finish, flags, small_config, together, write_pictures

import gsjax
from gsjax.config import settings
from gsjax.crops import Crops
from gsjax.data import sources
from gsjax.errors import UserError
from gsjax.evaluate import classifier, export, results
from gsjax.evaluate.encoder import Encoder
from gsjax.models import create_encoder, weights
from gsjax.runtime import interrupts, parallel
from gsjax.train import finetune, finetune_step
from gsjax.train.layer_rates import layer_rates
from gsjax.train.pretrain import pretrain
from gsjax.train.step import pixels


def recipe_of(fraction=1.0, **overrides):
    config = small_config(**{f"finetune__{name}": value for name, value in overrides.items()})
    return finetune.create_recipe(config.finetune, fraction)


def test_the_presets_are_the_published_protocols():
    assert recipe_of(0.01) == (60, 4096, 0.05, 0.05, True)
    assert recipe_of(0.1) == recipe_of(1.0) == (30, 4096, 0.05, 0.05, True)
    assert recipe_of(0.01, preset="barlow") == (20, 256, 0.005, 0.5, False)
    changed = recipe_of(num_epochs="7", batch_size="64", learning_rate="0.2")
    assert changed == (7, 64, 0.2, 0.2, True)
    changed = recipe_of(preset="barlow", learning_rate="0.2", head_learning_rate="0.3")
    assert changed == (20, 256, 0.2, 0.3, False)


VIT = {"encoder.name": "vit_tiny", "encoder.depth": "3", "encoder.patch_size": "8"}


def encoder_of(dtype="float32", **changes):
    config = settings.load(None)
    given = {key: value for key, value in changes.items() if key != "encoder.width"}
    settings.override(config, given | {"data.image_size": "16", "encoder.dtype": dtype})
    if "encoder.width" in changes:
        settings.override(config, {"encoder.width": changes["encoder.width"]})
    return create_encoder(settings.check(config))


def variables_of(module, size=16):
    images = jnp.zeros((2, size, size, 3))
    variables = jax.jit(lambda: module.init(jax.random.key(0), images, train=True))()
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def test_rates_of_a_transformer_decay_from_block_to_block():
    module = encoder_of(**VIT, **{"encoder.positions": "sincos"})
    params = jax.eval_shape(lambda: variables_of(module))["params"]
    rates = layer_rates(module, params, 0.8, 0.5)
    assert jax.tree.structure(rates) == jax.tree.structure(params)
    # Three blocks: the embeddings 0.8 / 2^4, then 2^3, 2^2, 2; the last norm is undiminished.
    expected = {
        "patch_embed_proj": 0.05, "cls_token": 0.05, "pos_embed": 0.0, "blocks_0": 0.1,
        "blocks_1": 0.2, "blocks_2": 0.4, "norm": 0.8,
    }  # fmt: skip
    assert {name: set(jax.tree.leaves(part)) for name, part in rates.items()} == {
        name: {rate} for name, rate in expected.items()
    }
    same = layer_rates(module, params, 0.8, 1.0)
    assert same.pop("pos_embed") == 0 and set(jax.tree.leaves(same)) == {0.8}


def test_rates_of_a_resnet_decay_from_stage_to_stage():
    module = encoder_of(**{"encoder.name": "resnet18", "encoder.width": "4"})
    params = jax.eval_shape(lambda: variables_of(module))["params"]
    rates = layer_rates(module, params, 1.0, 0.5)
    powers = {"conv1": 5, "bn1": 5, "layer1": 4, "layer2": 3, "layer3": 2, "layer4": 1}
    for name, part in rates.items():
        assert set(jax.tree.leaves(part)) == {0.5 ** powers[name.split("_")[0]]}


def test_an_encoder_without_layers_has_one_rate():
    module = ToyEncoder(4, "float32")
    params = variables_of(module)["params"]
    assert set(jax.tree.leaves(layer_rates(module, params, 0.1, 1.0))) == {0.1}
    with pytest.raises(UserError, match=r"layer_decay=0\.7, but ToyEncoder does not list"):
        layer_rates(module, params, 0.1, 0.7)


def encoder_on(devices, module, dtype="float32", size=16):
    mesh = parallel.create_mesh(8, jax.devices()[:devices])
    config = small_config(encoder__dtype=dtype)
    variables = jax.device_put(variables_of(module, size), parallel.replicated(mesh))
    return Encoder(module, variables, pixels(config), mesh, {}, batch_size=8)


def images_and_labels(count, num_classes, size=16):
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (count, 1, size, size, 3)).astype(np.uint8)
    return images, generator.integers(0, num_classes, count).astype(np.int32)


def trained(encoder, rates, images, labels, num_classes, steps, *, nesterov=True, flip=0.5,
            weight_decay=0.0, smoothing=0.0, schedule=lambda count: 1.0):  # fmt: skip
    """States after each step, and the last metrics."""
    config = small_config(finetune__flip=str(flip))
    augment = classifier.crop_and_flip(config, len(labels), 0.08, flip).augment
    optimizer = finetune_step.create_optimizer(schedule, rates, weight_decay, nesterov)
    shape = (classifier.num_features(encoder, images.shape[2]), num_classes)
    create = finetune_step.create_state_fn(shape, encoder.normalization[2], optimizer, encoder.mesh)
    state = create(jax.random.key(2), encoder.variables)
    program = finetune_step.create_train_step(encoder, augment, optimizer, encoder.mesh, smoothing)
    batch = parallel.shard({"global": Crops(images, None), "label": labels}, encoder.mesh)
    states = [jax.device_get(state)]
    for _ in range(steps):
        state, values = program(state, batch, jax.random.key(3))
        states.append(jax.device_get(state))
    return states, jax.device_get(values)


def rates_of(encoder, rate, head_rate, decay=1.0):
    of_encoder = layer_rates(encoder.module, encoder.variables["params"], rate, decay)
    return {"encoder": of_encoder, "head": {"kernel": head_rate, "bias": head_rate}}


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_those_of_pytorchs_sgd_with_smoothed_labels(nesterov):
    """The head on an encoder that stays, against a transcription in NumPy, in float64 there."""
    encoder = encoder_on(1, Patches(6))
    images, labels = images_and_labels(16, 3)
    factors, smoothing, decay = [1.0, 0.5, 0.25], 0.1, 0.01
    states, values = trained(
        encoder, rates_of(encoder, 0.0, 0.5), images, labels, 3, 3, nesterov=nesterov, flip=0.0,
        weight_decay=decay, smoothing=smoothing, schedule=lambda count: jnp.array(factors)[count],
    )  # fmt: skip
    features = np.asarray(encoder.encode_fn(encoder.variables, images[:, 0]), np.float64)
    head = [np.asarray(states[0].params["head"][name], np.float64) for name in ("kernel", "bias")]
    velocity = [np.zeros_like(part) for part in head]
    targets = np.full((16, 3), smoothing / 3)
    targets[np.arange(16), labels] += 1 - smoothing
    for factor in factors:
        logits = features @ head[0] + head[1]
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = -(targets * log_p).sum(axis=1).mean()
        error = (np.exp(log_p) - targets) / 16
        grads = [features.T @ error + decay * head[0], error.sum(axis=0)]
        for i, grad in enumerate(grads):
            velocity[i] = 0.9 * velocity[i] + grad
            step = grad + 0.9 * velocity[i] if nesterov else velocity[i]
            head[i] = head[i] - 0.5 * factor * step
    np.testing.assert_allclose(values["loss"], loss, rtol=1e-5)
    assert values["top1"] == pytest.approx(100 * (logits.argmax(axis=1) == labels).mean())
    last = states[-1].params
    np.testing.assert_allclose(last["head"]["kernel"], head[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(last["head"]["bias"], head[1], rtol=1e-4, atol=1e-6)
    for before, after in zip(
        jax.tree.leaves(encoder.variables["params"]), jax.tree.leaves(last["encoder"]), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_the_first_step_of_every_layer_has_its_own_rate(x64):
    """A step at rate r moves by r times the gradient, which JAX takes of the formula here."""
    module = encoder_of("float64", **VIT | {"encoder.depth": "2"})
    encoder = encoder_on(1, module, "float64")
    images, labels = images_and_labels(8, 3)
    rates = rates_of(encoder, 0.2, 0.7, decay=0.5)
    (first, last), _ = trained(
        encoder, rates, images, labels, 3, 1, nesterov=False, flip=0.0, smoothing=0.2
    )
    mean, std, _ = encoder.normalization
    pictures = (images[:, 0] / 255 - np.array(mean)[None, None, None]) / np.array(std)[
        None, None, None
    ]

    def loss(params):
        pooled = module.apply({"params": params["encoder"]}, jnp.asarray(pictures), False).pooled
        logits = pooled @ params["head"]["kernel"] + params["head"]["bias"][None]
        log_p = jax.nn.log_softmax(logits)
        of_label = log_p[jnp.arange(8), labels]
        return jnp.mean(-0.8 * of_label - 0.2 * log_p.mean(axis=1))

    grads = jax.jit(jax.grad(loss))(first.params)
    expected = jax.tree.map(lambda x, rate, grad: x - rate * grad, first.params, rates, grads)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(last.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["toy", "vit"])
def test_four_devices_equal_one(x64, name):
    """BatchNorm has the statistics of all devices; drop path and flips are drawn per image."""
    changes = VIT | {"encoder.drop_path": "0.5", "encoder.depth": "2"}
    module = encoder_of("float64", **changes) if name == "vit" else ToyEncoder(6, "float64")
    images, labels = images_and_labels(8, 5)
    found = []
    for devices in (1, 4):
        encoder = encoder_on(devices, module, "float64")
        decay = 0.6 if name == "vit" else 1.0
        rates = rates_of(encoder, 0.1, 0.3, decay)
        states, values = trained(
            encoder, rates, images, labels, 5, 3, smoothing=0.1, weight_decay=1e-3
        )
        found.append((states[-1], values))
    leaves = jax.tree.leaves(found[0])
    assert sum(getattr(leaf, "dtype", None) == np.float64 for leaf in leaves) > 5
    for a, b in zip(leaves, jax.tree.leaves(found[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    statistics = found[0][0].extra["batch_stats"]
    assert not any(np.isin(leaf, (0, 1)).all() for leaf in jax.tree.leaves(statistics))


@pytest.mark.slow
def test_drop_path_draws_anew_in_every_step_and_for_every_image():
    """Nothing is trained, so only the draws tell two steps apart."""
    encoder = encoder_on(1, encoder_of(**VIT, **{"encoder.drop_path": "0.9"}))
    images, _ = images_and_labels(8, 3)
    config = small_config()
    augment = classifier.crop_and_flip(config, 8, 0.08, 0.0).augment
    optimizer = finetune_step.create_optimizer(lambda _: 0.0, rates_of(encoder, 0.1, 0.1), 0, False)
    create = finetune_step.create_state_fn((192, 3), jnp.float32, optimizer, encoder.mesh)
    state = create(jax.random.key(2), encoder.variables)
    state = state.replace(params=jax.tree.map(lambda x: x + 0.1, state.params))
    program = finetune_step.create_train_step(encoder, augment, optimizer, encoder.mesh)
    losses = []
    for same in (False, False, True):
        chosen = np.repeat(images[:1], 8, axis=0) if same else images
        batch = parallel.shard(
            {"global": Crops(chosen, None), "label": np.zeros(8, np.int32)}, encoder.mesh
        )
        state, values = program(state, batch, jax.random.key(3))
        losses.append((float(values["loss"]), float(values["grad_norm"])))
    assert len(set(losses)) == 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


EASY = {
    "data__source": "folder",
    "encoder__width": "16",
    "finetune__batch_size": "16",
    "finetune__num_epochs": "6",
    "finetune__fraction": "0.5",
    "finetune__every_epochs": "2",
    "checkpoint__every_steps": "1000",
}


@pytest.fixture(scope="module")
def base_run(tmp_path_factory, data):
    """The work directory of a short pre-training on two classes of pictures."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    config = small_config(
        **EASY, num_steps="2", batch_size="16", data__data_dir=str(data), knn__every_epochs="0",
        data__labeled_split="", data__test_split="", log__example_pairs="0",
    )  # fmt: skip
    pretrain(config, str(workdir))
    return workdir


@pytest.fixture
def workdir(base_run, tmp_path):
    shutil.copytree(base_run, tmp_path / "run")
    return tmp_path / "run"


def evaluate(job, workdir, data, **changes):
    given = EASY | {"data__labeled_split": "train", "data__test_split": "test"} | changes
    overrides = {key.replace("__", "."): str(value) for key, value in given.items()}
    overrides["data.data_dir"] = str(data)
    if overrides.get("checkpoint.load") == "none":
        overrides = {"encoder.name": "toy", "data.image_size": "16"} | overrides
    config = settings.check(settings.of_evaluation(str(workdir), None, overrides))
    job.run(config, str(workdir))
    return results.read(workdir / "results" / "finetune.json")


def test_easy_classes_are_learned_and_the_untrained_encoder_stands_next_to_it(
    workdir, data, capsys
):
    (ours,) = evaluate(finetune, workdir, data, finetune__learning_rate=0.5)
    assert ours["scores"] == {"finetune/top1": 100.0, "finetune/top5": 100.0}
    protocol = ours["protocol"]
    assert (protocol["num_train"], protocol["num_test"], protocol["fraction"]) == (40, 8, 0.5)
    assert (protocol["learning_rate"], protocol["head_learning_rate"]) == (0.5, 0.5)
    for rate in (0.01, 1.0):
        changes = {"checkpoint__load": "none", "finetune__learning_rate": rate}
        capsys.readouterr()
        known = evaluate(finetune, workdir, data, **changes)
    assert [entry["step"] for entry in known] == [2, None, None]
    table = capsys.readouterr().out
    for line in ("step 2, learning_rate 0.5,", "untrained, learning_rate 0.01,",
                 "untrained, learning_rate 1, head_learning_rate 1 "):  # fmt: skip
        assert line in table


def test_results_of_one_protocol_are_comparable_whatever_their_rates():
    def entry(step, **protocol):
        return {
            "dataset": "d", "image_size": 16, "normalization": [], "step": step,
            "encoder": {"name": "toy", "digest": str(step)}, "tuned": ["learning_rate"],
            "protocol": {"seed": 5, "learning_rate": 0.1} | protocol,
        }  # fmt: skip

    ours, faster = entry(None), entry(None, learning_rate=0.2)
    assert results.comparable(ours, faster) and not results.same(ours, faster)
    assert results.same(ours, entry(None)) and not results.same(ours, entry(12))
    assert results.comparable(ours, entry(12, learning_rate=0.5))
    assert not results.comparable(ours, entry(12, seed=6))
    untuned = [{**one, "tuned": []} for one in (ours, faster)]
    assert not results.comparable(*untuned)


def metric_rows(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    dropped = ("train/images_per_second", "train/data_wait")
    return [{name: v for name, v in row.items() if name not in dropped} for row in rows]


# The measurement after step 4 looks once.
@pytest.mark.parametrize("asks", [3, 4, pytest.param(5, marks=pytest.mark.slow)])
def test_resume_equals_uninterrupted_bit_for_bit(workdir, data, tmp_path, monkeypatch, asks):
    """Stopped before and during the measurement after the second epoch, or in the third."""
    shutil.copytree(workdir, tmp_path / "other")
    (whole,) = evaluate(finetune, workdir, data, log__every_steps=1)

    class After(interrupts.Request):
        """Asks to stop the `asks`-th time that anyone looks."""

        asked = 0

        @property
        def signal(self):
            self.asked += 1
            return 15 * (self.asked > asks)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(interrupts, "Request", After)
        evaluate(finetune, tmp_path / "other", data, log__every_steps=1)
    assert left.value.code == 128 + 15
    (resumed,) = evaluate(finetune, tmp_path / "other", data, log__every_steps=1)
    assert resumed["scores"] == whole["scores"] and resumed["protocol"] == whole["protocol"]
    for a, b in zip(
        final_state(workdir / "finetune", 12), final_state(tmp_path / "other/finetune", 12),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(a, b)
    rows = metric_rows(workdir / "finetune")
    assert [row["step"] for row in rows if "finetune/top1" in row] == [4, 8, 12]
    assert metric_rows(tmp_path / "other/finetune") == rows


def test_other_settings_move_the_network_aside(workdir, data, capsys):
    evaluate(finetune, workdir, data, finetune__num_epochs=1)
    capsys.readouterr()
    evaluate(finetune, workdir, data, finetune__num_epochs=1)
    output = capsys.readouterr().out
    assert "from step 2" in output and "moved" not in output
    evaluate(finetune, workdir, data, finetune__num_epochs=1, finetune__fraction=0.6)
    output = capsys.readouterr().out
    assert f"moved the network of another encoder or other settings to {workdir}" in output
    assert (workdir / "finetune.1/checkpoints/2").is_dir() and "from step 0" in output


@pytest.mark.slow
def test_two_processes_train_as_one(workdir, data, tmp_path):
    shutil.copytree(workdir, tmp_path / "two")
    # Pre-trained in float32: the untrained encoder is of the same type as the job.
    given = EASY | {
        "encoder__dtype": "float64", "checkpoint__load": "none", "data__data_dir": str(data),
        "data__labeled_split": "train", "data__test_split": "test",
    }  # fmt: skip
    (alone,) = together(workdir, 1, "--job=finetune", *flags(**given), devices=1)
    finish(alone)
    for process in together(tmp_path / "two", 2, "--job=finetune", *flags(**given), devices=2):
        finish(process)
    name = "finetune_untrained"
    for a, b in zip(
        final_state(workdir / name, 12), final_state(tmp_path / "two" / name, 12), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    one, two = (
        results.read(folder / "results/finetune.json")[0] for folder in (workdir, tmp_path / "two")
    )
    assert one["scores"] == two["scores"] and one["protocol"] == two["protocol"]


RESNET = {
    "checkpoint__load": "none", "encoder__name": "resnet18", "encoder__width": "4",
    "data__image_size": "16",
}  # fmt: skip


@pytest.fixture(scope="module")
def resnet(tmp_path_factory, data):
    """An untrained ResNet, fine-tuned and exported with its head."""
    workdir = tmp_path_factory.mktemp("resnet") / "run"
    quick = {"finetune__num_epochs": 2, "finetune__every_epochs": 0, "finetune__learning_rate": 0.5}
    evaluate(finetune, workdir, data, **RESNET, **quick)
    evaluate(export, workdir, data, **RESNET, export__finetuned=True, export__stablehlo=True)
    return workdir


def test_exported_logits_give_the_recorded_accuracy(resnet, data):
    """Computed by hand from the files, with the head under torchvision's names."""
    folder = resnet / "export"
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    assert tensors["fc.weight"].shape == (2, 32) and tensors["fc.bias"].shape == (2,)
    encoder = gsjax.load_encoder(folder)
    assert sorted(encoder.info["unused"]) == ["fc.bias", "fc.weight"]
    paths = sorted((data / "test").rglob("*.png"))
    labels = np.array([path.parent.name == "dark" for path in paths])  # bright is class 0
    logits = encoder.encode(paths) @ tensors["fc.weight"].T + tensors["fc.bias"]
    (entry,) = results.read(resnet / "results/finetune.json")
    found = 100 * (logits.argmax(axis=1) == labels).mean()
    assert found == pytest.approx(entry["scores"]["finetune/top1"])
    state = final_state(resnet / "finetune_untrained", 4)
    heads = [leaf for leaf in state if leaf.shape == (32, 2)]
    assert any(np.array_equal(leaf.T, tensors["fc.weight"]) for leaf in heads)
    images = np.stack([encoder.preprocess(path) for path in paths])
    from jax import export as jax_export

    program = jax_export.deserialize(bytearray((folder / "encoder.stablehlo").read_bytes()))
    np.testing.assert_allclose(program.call(images), logits, rtol=1e-4, atol=1e-4)


def test_exported_network_names_its_classes(resnet):
    content = json.loads((resnet / "export/config.json").read_text())
    assert content["num_classes"] == content["pretrained_cfg"]["num_classes"] == 2
    assert content["label_names"] == ["bright", "dark"] and content["num_features"] == 32
    assert content["pretrained_cfg"]["classifier"] == "fc"
    card = (resnet / "export/README.md").read_text()
    for expected in ("# resnet18, trained on labels alone\n", '`["bright", "dark"]`',
                     "40 labeled images", "| finetune/top1 |", "- image-classification\n",
                     "32 features and 2 logits"):  # fmt: skip
        assert expected in card


@pytest.mark.slow
def test_an_exported_network_is_an_encoder_again(resnet, data, tmp_path):
    changes = {"encoder__weights": str(resnet / "export"), "encoder__width": "4"}
    assert weights.find(str(resnet / "export")).format == "gsjax"
    (entry,) = evaluate(finetune, tmp_path, data, **changes, finetune__num_epochs=1)
    assert entry["weights"] == "gsjax"
    assert (tmp_path / "finetune_weights/checkpoints/2").is_dir()


def test_export_refuses_what_is_not_there(resnet, data, tmp_path):
    changes = RESNET | {"export__finetuned": True}
    with pytest.raises(UserError, match=r"export\.detectron2 is for encoders without a head"):
        evaluate(export, resnet, data, **changes, export__detectron2=True)
    shutil.copytree(resnet, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/finetune_untrained/checkpoints/4")
    with pytest.raises(UserError, match=r"has not reached step 4: rerun --job finetune"):
        evaluate(export, tmp_path / "run", data, **changes)
    shutil.rmtree(tmp_path / "run/finetune_untrained")
    with pytest.raises(UserError, match=r"no network fine-tuned from this encoder: run --job"):
        evaluate(export, tmp_path / "run", data, **changes)


def test_settings_that_contradict_each_other_are_one_line(workdir, data):
    with pytest.raises(UserError, match="both choose labels"):
        evaluate(finetune, workdir, data, finetune__label_file="some.txt")
    with pytest.raises(UserError, match=r"finetune\.batch_size=4096 is more than the 40 images"):
        evaluate(finetune, workdir, data, finetune__batch_size=0)
    with pytest.raises(UserError, match="does not list its layers"):
        evaluate(finetune, workdir, data, finetune__layer_decay=0.5)


def test_a_list_of_names_replaces_the_fraction(workdir, data, tmp_path):
    names = [f"bright/{i:02}.png" for i in range(1, 25, 2)] + [f"{i:02}.png" for i in (0, 2, 8)]
    (tmp_path / "few.txt").write_text("\n".join(names) + "\n")
    (entry,) = evaluate(
        finetune, workdir, data, finetune__fraction=1, finetune__batch_size=4,
        finetune__label_file=tmp_path / "few.txt",
    )  # fmt: skip
    assert entry["protocol"]["num_train"] == 15
    assert entry["protocol"]["label_file"].startswith("few.txt (")


def test_a_damaged_image_is_replaced_in_training_and_left_out_of_the_test(
    workdir, data, tmp_path, capfd
):
    shutil.copytree(data, tmp_path / "data")
    for name in ("train/bright/01.png", "test/dark/00.png"):
        (tmp_path / "data" / name).write_bytes(b"damaged")
    (entry,) = evaluate(
        finetune, workdir, tmp_path / "data", finetune__fraction=1, data__max_damaged=0.1,
        finetune__num_epochs=1, finetune__batch_size=80,
    )  # fmt: skip
    assert (entry["protocol"]["num_test"], entry["protocol"]["num_left_out"]) == (7, 1)
    assert "train/bright/01.png cannot be decoded: using" in capfd.readouterr().err


def test_open_labeled_of_the_run_is_whole(data):
    """The fraction concerns training alone: all images of the test split are measured."""
    config = small_config(
        **EASY, data__data_dir=str(data), data__labeled_split="train", data__test_split="test"
    )
    bank, test = sources.open_labeled(config.data)
    evaluator = finetune.Finetune(config, None)
    assert evaluator.num_steps == 6 * (bank.num_examples // 2 // 16)
    assert evaluator._test.num_examples == test.num_examples == 8

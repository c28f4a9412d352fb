"""The committed configs: they load, they build, and every setting is read."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsjax import methods
from gsjax.config import defaults, settings
from gsjax.crops import Crops
from gsjax.runtime import parallel
from gsjax.train import optimizers, step

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
NEW = [
    f"{{}}_{name}"
    for name in ("resnet50_imagenet", "vit_small_imagenet", "cifar10", "vit_tiny_cifar10")
]
TWINS = [
    (f"{method}_{data}", f"{method}_gs_{data}")
    for method in ("simclr", "simsiam", "mocov2", "byol")
    for data in ("imagenet", "stl10", "cifar10")
] + [(name.format("mocov3"), name.format("mocov3_gs")) for name in NEW]
WEIGHTED_TWINS = [(name.format("dino"), name.format("dino_gs")) for name in NEW]


def load(name):
    return settings.check(settings.load(str(ROOT / "configs" / f"{name}.py")))


def first_of_each_program():
    """A config for each pair of method and encoder: the others differ in numbers."""
    programs = {}
    for path in CONFIGS:
        config = load(path.stem)
        programs.setdefault((config.method, config.encoder.name), path.stem)
    return list(programs.values())


def build(config):
    """The method, optimizer and mesh of a config."""
    mesh = parallel.create_mesh(config.batch_size, jax.devices()[:1])
    num_steps = config.num_steps or 100 * config.num_epochs
    schedule = optimizers.create_schedule(config, num_steps, 100)
    optimizer = optimizers.create_optimizer(config, schedule)
    method = methods.create_method(config)
    return method, optimizer, mesh


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds_its_method_and_optimizer(path):
    method, _, _ = build(load(path.stem))
    assert {"encoder", "projector"} <= method.networks.keys()


def quick_or_slow(name):
    """Tracing takes up to ten seconds: at once, two methods, of which other tests train all."""
    small = name in ("demo", "dino_cifar10")
    return name if small else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [quick_or_slow(name) for name in first_of_each_program()])
def test_its_step_can_be_traced(name):
    config = load(name)
    method, optimizer, mesh = build(config)
    state = step.create_state_fn(config, method, optimizer, mesh).eval_shape(jax.random.key(0))

    def crops(num_views, size):
        shape = config.batch_size, num_views
        return Crops(
            jax.ShapeDtypeStruct((*shape, size, size, 3), jnp.uint8),
            jax.ShapeDtypeStruct((*shape, 4), jnp.float32),
        )

    batch = {"global": crops(2, config.data.image_size)}
    if config.crops.local_views:
        batch["local"] = crops(config.crops.local_views, config.crops.local_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    train_step = step.create_train_step(config, method, optimizer, mesh, 100, 10)
    new_state, metrics = jax.eval_shape(train_step, state, batch, key)
    assert jax.tree.map(lambda x: x.shape, new_state) == jax.tree.map(lambda x: x.shape, state)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_docstring_gives_the_command(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert f"python -m gsjax.main --config configs/{path.name}" in docstring


@pytest.mark.parametrize(("baseline", "graded"), TWINS)
def test_twins_differ_in_the_similarity_alone(baseline, graded):
    differences = settings.shaping_differences(load(baseline), load(graded))
    assert differences == ["similarity.measure: none -> ioa"]


@pytest.mark.parametrize(("baseline", "graded"), WEIGHTED_TWINS)
def test_twins_of_dino_differ_in_the_weights_alone(baseline, graded):
    differences = settings.shaping_differences(load(baseline), load(graded))
    assert differences == ["similarity.form: regress -> weight", "similarity.measure: none -> ioa"]


# Section 5 and appendix A of the thesis.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "simclr_imagenet",
            {
                "encoder.name": "resnet50",
                "encoder.stem": "imagenet",
                "batch_size": 256,
                "num_epochs": 100,
                "optimizer.name": "lars",
                "optimizer.learning_rate": 0.3,
                "optimizer.weight_decay": 1e-6,
                "schedule.warmup_epochs": 10,
                "augment.min_scale": 0.08,
                "augment.blur": 0.2,
                "augment.hue": 0.2,
                "projector.hidden_dim": 512,
                "projector.out_dim": 128,
                "loss.temperature": 0.5,
            },
        ),
        (
            "simclr_stl10",
            {"encoder.name": "resnet18", "encoder.stem": "imagenet", "batch_size": 1024,
             "num_epochs": 800, "data.split": "train+unlabelled", "data.labeled_split": "train",
             "data.image_size": 96, "augment.blur": 0.2},
        ),
        (
            "simclr_cifar10",
            {"encoder.name": "resnet18", "encoder.stem": "cifar", "batch_size": 1024,
             "num_epochs": 800, "data.image_size": 32, "augment.blur": 0, "encoder.width": 64},
        ),
        (
            "simsiam_imagenet",
            {"encoder.name": "resnet50", "batch_size": 256, "optimizer.name": "sgd",
             "optimizer.learning_rate": 0.05, "optimizer.weight_decay": 1e-4,
             "optimizer.momentum": 0.9, "optimizer.fix_pred_lr": True,
             "schedule.warmup_epochs": 0, "augment.min_scale": 0.2, "augment.hue": 0.1,
             "augment.brightness": 0.4, "projector.num_layers": 3, "projector.hidden_dim": 2048,
             "projector.out_dim": 2048, "predictor.hidden_dim": 512},
        ),
        (
            "simsiam_stl10",
            {"batch_size": 256, "num_epochs": 800, "optimizer.learning_rate": 0.03,
             "optimizer.weight_decay": 5e-4, "projector.num_layers": 2, "augment.blur": 0.2,
             "encoder.stem": "imagenet", "data.source": "stl10"},
        ),
        # As facebookresearch/moco-v3 and facebookresearch/dino.
        (
            "mocov3_vit_small_imagenet",
            {"encoder.name": "vit_small", "encoder.heads": 12, "encoder.positions": "sincos",
             "encoder.freeze_patches": True, "batch_size": 4096, "num_epochs": 300,
             "optimizer.name": "adamw", "optimizer.learning_rate": 1.5e-4,
             "optimizer.weight_decay": 0.1, "schedule.warmup_epochs": 40,
             "loss.temperature": 0.2, "augment.min_scale": 0.08, "target.momentum": 0.99,
             "target.final_momentum": 1, "projector.num_layers": 3, "projector.last_bn": True,
             "predictor.last_bn": True, "augment.blur": "1.0,0.1", "augment.solarize": "0,0.2"},
        ),
        (
            "mocov3_resnet50_imagenet",
            {"batch_size": 4096, "optimizer.name": "lars", "optimizer.learning_rate": 0.6,
             "optimizer.rate_after_momentum": True, "optimizer.weight_decay": 1e-6,
             "loss.temperature": 1, "augment.min_scale": 0.2, "predictor.last_bn": False},
        ),
        (
            "dino_vit_small_imagenet",
            {"batch_size": 512, "num_epochs": 100, "optimizer.learning_rate": 5e-4,
             "optimizer.weight_decay": 0.04, "schedule.final_weight_decay": 0.4,
             "schedule.final_learning_rate": 1e-6, "optimizer.clip": 3, "encoder.drop_path": 0.1,
             "prototypes.number": 65536, "prototypes.frozen_epochs": 1, "prototypes.unit": True,
             "loss.student_temperature": 0.1, "loss.teacher_temperature": 0.04,
             "prototypes.center_momentum": 0.9, "target.momentum": 0.996,
             "crops.local_views": 8, "crops.local_size": 96, "augment.min_scale": 0.4,
             "crops.local_min_scale": 0.05, "crops.local_max_scale": 0.4,
             "augment.blur": "1.0,0.1,0.5", "augment.solarize": "0,0.2,0",
             "augment.interpolation": "bicubic"},
        ),
        (
            "dino_resnet50_imagenet",
            {"optimizer.name": "sgd", "optimizer.learning_rate": 0.03,
             "optimizer.weight_decay": 1e-4, "schedule.final_weight_decay": 1e-4,
             "augment.min_scale": 0.14, "crops.local_max_scale": 0.14},
        ),
        (
            "simsiam_cifar10",
            {"batch_size": 256, "num_epochs": 800, "optimizer.learning_rate": 0.03,
             "optimizer.weight_decay": 5e-4, "projector.num_layers": 2, "augment.blur": 0,
             "encoder.stem": "cifar", "data.source": "cifar10"},
        ),
    ],
)  # fmt: skip
def test_thesis_values(name, expected):
    flat = settings.flatten(load(name))
    assert {key: flat[key] for key in expected} == expected
    assert flat["seed"] == 5
    assert flat["optimizer.scaling"] == "linear"


_LIGHTLY = {
    "encoder.zero_init_residual": False, "batch_size": 512, "num_epochs": 200,
    "optimizer.name": "sgd", "optimizer.weight_decay": 5e-4, "schedule.warmup_epochs": 0,
    "augment.brightness": 0.4, "augment.hue": 0.1, "augment.blur": 0, "knn.preset": "instdisc",
}  # fmt: skip


# The publications' code: facebookresearch/moco, google-deepmind/deepmind-research, and lightly's
# cifar10_benchmark.py.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "mocov2_official_imagenet",
            {"encoder.name": "resnet50", "encoder.zero_init_residual": False, "batch_size": 256,
             "num_epochs": 200, "optimizer.name": "sgd", "optimizer.learning_rate": 0.03,
             "optimizer.weight_decay": 1e-4, "optimizer.momentum": 0.9,
             "schedule.warmup_epochs": 0, "queue.size": 65536, "target.momentum": 0.999,
             "target.final_momentum": 0, "loss.temperature": 0.2, "loss.symmetric": False,
             "projector.hidden_dim": 2048, "projector.out_dim": 128, "augment.min_scale": 0.2,
             "augment.jitter": 0.8, "augment.brightness": 0.4, "augment.saturation": 0.4,
             "augment.hue": 0.1, "augment.gray": 0.2, "augment.blur": 0.5},
        ),
        (
            "byol_official_imagenet",
            {"encoder.name": "resnet50", "encoder.zero_init_residual": True, "batch_size": 4096,
             "encoder.padding": "same",
             "num_epochs": 1000, "optimizer.name": "lars", "optimizer.learning_rate": 0.2,
             "optimizer.weight_decay": 1.5e-6, "optimizer.momentum": 0.9,
             "optimizer.rate_after_momentum": True, "schedule.warmup_epochs": 10,
             "target.momentum": 0.996, "target.final_momentum": 1, "loss.siamese": "sum",
             "projector.hidden_dim": 4096, "projector.out_dim": 256,
             "predictor.hidden_dim": 4096, "augment.crop": "byol", "augment.min_scale": 0.08,
             "augment.brightness": 0.4, "augment.saturation": 0.2, "augment.hue": 0.1,
             "augment.blur": "1.0,0.1", "augment.solarize": "0,0.2"},
        ),
        (
            "simclr_lightly_cifar10",
            {"optimizer.learning_rate": 0.12, "optimizer.scaling": "linear",
             "augment.min_scale": 0.08, "loss.temperature": 0.5, "projector.num_layers": 2,
             "projector.hidden_dim": 512, "projector.out_dim": 128, "projector.last_bn": True},
        ),
        (
            "simsiam_lightly_cifar10",
            {"optimizer.learning_rate": 0.06, "optimizer.scaling": "none",
             "augment.min_scale": 0.2, "loss.siamese": "cosine", "projector.num_layers": 2,
             "projector.hidden_dim": 2048, "projector.out_dim": 2048,
             "projector.last_bn": True, "predictor.hidden_dim": 512},
        ),
        (
            "mocov2_lightly_cifar10",
            {"optimizer.learning_rate": 0.12, "augment.min_scale": 0.08, "queue.size": 8192,
             "loss.temperature": 0.1, "loss.symmetric": True, "target.momentum": 0.99,
             "projector.hidden_dim": 512, "projector.out_dim": 128, "projector.last_bn": False},
        ),
        (
            "byol_lightly_cifar10",
            {"optimizer.learning_rate": 0.12, "augment.min_scale": 0.08,
             "target.momentum": 0.99, "target.final_momentum": 0, "loss.siamese": "cosine",
             "projector.hidden_dim": 1024, "projector.out_dim": 256,
             "predictor.hidden_dim": 1024, "projector.last_bn": False},
        ),
        (
            "dino_lightly_cifar10",
            {"optimizer.learning_rate": 0.12, "augment.min_scale": 0.4,
             "augment.saturation": 0.2, "augment.solarize": "0,0.2", "crops.local_views": 0,
             "target.momentum": 0.99, "target.final_momentum": 0, "projector.num_layers": 2,
             "projector.hidden_dim": 2048, "projector.hidden_bn": True, "projector.out_dim": 256,
             "prototypes.number": 2048, "prototypes.unit": True, "prototypes.frozen_epochs": 0,
             "loss.teacher_temperature": 0.04, "loss.student_temperature": 0.1},
        ),
    ],
)  # fmt: skip
def test_published_recipes(name, expected):
    flat = settings.flatten(load(name))
    expected = expected | (_LIGHTLY if "lightly" in name else {})
    assert {key: flat[key] for key in expected} == expected


def test_thesis_warmup_is_ten_epochs():
    config = load("simclr_cifar10")
    steps_per_epoch = 50000 // 1024
    schedule = optimizers.create_schedule(config, 800 * steps_per_epoch, steps_per_epoch)
    warmup = 10 * steps_per_epoch
    np.testing.assert_allclose(schedule(warmup), 0.3 * 1024 / 256, rtol=1e-6)
    np.testing.assert_allclose(schedule(warmup // 2), 0.5 * 0.3 * 1024 / 256, rtol=1e-6)


@pytest.mark.parametrize(
    "group",
    "features linear finetune transfer retrieval diagnostics embed search export report".split(),
)
def test_every_setting_of_the_evaluations_is_read(group):
    """As `config.<group>.<name>`, or as `settings.<name>` in a module that takes the group."""
    read = set()
    folders = ["report"] if group == "report" else ["evaluate", "data", "train"]
    for path in (path for folder in folders for path in (ROOT / "gsjax" / folder).glob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        texts = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
        takes_group = any(text.endswith(f"config.{group}") for text in texts)
        for name in defaults.get_config()[group]:
            whole = any(text.endswith(f"config.{group}.{name}") for text in texts)
            if whole or (takes_group and f"settings.{name}" in texts):
                read.add(name)
    assert set(defaults.get_config()[group]) - read == set()

"""Settings: overrides, checks and what they say."""

import json
import subprocess
import sys
import textwrap

import pytest

from gsjax.config import choices, defaults, schema, settings
from gsjax.errors import UserError
from gsjax.methods import METHODS
from gsjax.models import ENCODERS
from gsjax.train import OPTIMIZERS


def checked(**overrides):
    config = defaults.get_config()
    settings.override(config, {key.replace("__", "."): text for key, text in overrides.items()})
    return settings.check(config)


def test_defaults_pass():
    assert checked() == defaults.get_config()


def test_overrides_keep_the_type_of_the_default():
    config = checked(
        batch_size="64",
        similarity__threshold="0.25",
        knn__baselines="false",
        data__source="cifar10",
    )
    assert config.batch_size == 64
    assert config.similarity.threshold == 0.25
    assert config.knn.baselines is False
    assert config.data.source == "cifar10"


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("similarity.treshold", "0.5", "did you mean similarity.threshold"),
        ("treshold", "0.5", "did you mean similarity.threshold"),
        ("temperature", "0.5", "did you mean loss.temperature"),
        ("augment", "0.5", "augment is a group"),
        ("batch_size", "12.5", "'12.5' is not a whole number"),
        ("loss.temperature", "warm", "'warm' is not a number"),
        ("knn.baselines", "maybe", "'maybe' is not true or false"),
        ("num_epochs", "-1", "num_epochs is -1; it must be at least 0"),
        ("encoder.width", "9" * 30, "from 1 to 65536"),
        ("optimizer.learning_rate", "nan", "is nan; it must be at least 0"),
        ("optimizer.learning_rate", "1e7", "at most 1000000"),
        ("similarity.threshold", "1.01", "from 0 to 1"),
        ("similarity.threshold", "-0.1", "from 0 to 1"),
        ("similarity.threshold", "nan", "from 0 to 1"),
        ("optimizer.learning_rate", "inf", "optimizer.learning_rate is inf"),
        ("loss.temperature", "0", "loss.temperature is 0"),
        ("method", "barlow", "simclr, simsiam, mocov2, byol"),
        ("data.mean", "0.5,0.5", "3 comma-separated numbers from 0 to 1"),
        ("data.std", "0,1,1", "from 1e-06 to 1"),
        ("data.mean", "nan,0,0", "from 0 to 1"),
        ("seed", "99999999999", "it must be at most 2147483647"),
        ("num_steps", "0", "num_epochs and num_steps"),
        ("augment.max_scale", "0.01", "augment.min_scale is above"),
        ("augment.max_scale", "1,0.01", "augment.min_scale is above"),
        ("crops.local_max_scale", "0.01", "crops.local_min_scale is above crops.local_max_scale"),
        ("crops.min_overlap", "1.5", "crops.min_overlap is 1.5; it must be from 0 to 1"),
        ("crops.overlap", "none", "crops.overlap is 'none'; it must be one of iou, ioa"),
        ("similarity.form", "square", "it must be one of regress, weight, margin"),
        ("data.test_split", "", "data.test_split is empty"),
        ("data.source", "folder", "data.data_dir"),
        ("checkpoint.load", "", "checkpoint.load is empty"),
    ],
)
def test_impossible_values_are_named(key, text, expected):
    with pytest.raises(UserError, match=expected.replace(".", r"\.")) as caught:
        checked(**{key: text})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"similarity.scale": "0.5"}, "similarity.scale is 0.5"),
        ({"projector.last_bn": "false"}, "projector.last_bn"),
        ({"loss.siamese": "cosine"}, "similarity.measure=none"),
    ],
)
def test_simsiam_refuses_what_it_does_not_have(overrides, expected):
    with pytest.raises(UserError, match=expected):
        checked(**{"method": "simsiam", "projector.last_bn": "true", **overrides})


def test_settings_that_the_chosen_rows_do_not_read_are_named():
    for method, key, told in (
        ("simclr", "optimizer.fix_pred_lr", "method=simclr: omit it, or choose simsiam"),
        ("byol", "loss.temperature", "method=byol: omit it, or choose simclr or mocov2"),
    ):
        config = checked(method=method)
        choices.check(config, ["seed", "batch_size", "method", "projector.hidden_dim"])
        with pytest.raises(UserError, match=f"^{key} has no effect with {told}"):
            choices.check(config, [key])


def test_wrong_types_in_a_config_file_are_named():
    config = defaults.get_config()
    with config.ignore_type():
        config.batch_size = "128"
    with pytest.raises(UserError, match="batch_size is '128'; it must be a whole number"):
        settings.check(config)


def test_unknown_keys_in_a_config_file_are_named():
    config = defaults.get_config()
    with config.unlocked():
        config.similarity.treshold = 0.5
    with pytest.raises(UserError, match=r"similarity\.treshold.*similarity\.threshold"):
        settings.check(config)


def test_split_overrides():
    rest, overrides = settings.split_overrides(
        ["main", "--config=a.py", "--config.seed=3", "-config.data.split", "train[:10%]", "--job=x"]
    )
    assert rest == ["main", "--config=a.py", "--job=x"]
    assert overrides == {"seed": "3", "data.split": "train[:10%]"}
    with pytest.raises(UserError, match="needs a value"):
        settings.split_overrides(["main", "--config.seed"])


def test_a_config_imports_its_siblings_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "base_of_test.py").write_text(
        "from gsjax.config import defaults\n\ndef get_config():\n    return defaults.get_config()\n"
    )
    (tmp_path / "child_of_test.py").write_text(
        textwrap.dedent("""
            import base_of_test

            def get_config():
                config = base_of_test.get_config()
                config.seed = 11
                return config
        """)
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert settings.load("../child_of_test.py").seed == 11
    assert settings.load(str(tmp_path / "child_of_test.py")).seed == 11


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("def get_config(:\n", r"bad\.py:1: SyntaxError"),
        ("import numpyy\n", r"bad\.py:1: ModuleNotFoundError"),
        ("x = 1\n", r"has no get_config\(\)"),
        ("import sys\nsys.exit(7)\n", r"bad\.py:2: SystemExit"),
        ("def get_config():\n    return 3\n", "must return a ConfigDict"),
        (
            "from gsjax.config import defaults\n\n"
            "def get_config():\n    c = defaults.get_config()\n"
            "    c.nonsense = 1\n    return c\n",
            r"bad\.py:5: unknown setting nonsense",
        ),
    ],
)
def test_a_failing_config_file_is_one_line(tmp_path, content, expected):
    file = tmp_path / "bad.py"
    file.write_text(content)
    with pytest.raises(UserError, match=expected) as caught:
        settings.load(str(file))
    assert "\n" not in str(caught.value)


def test_differences_leave_out_what_does_not_shape_training():
    old = checked().to_dict()
    new = checked(log__every_steps="7", checkpoint__keep="9", knn__k="5").to_dict()
    assert settings.shaping_differences(old, new) == []
    new = checked(seed="6", augment__gray="0.1", data__split="").to_dict()
    assert settings.shaping_differences(old, new) == [
        "augment.gray: 0.2 -> 0.1",
        'data.split: train -> ""',
        "seed: 5 -> 6",
    ]


def test_every_setting_stands_in_the_table_with_its_class():
    flat = settings.flatten(defaults.get_config())
    assert flat == {key: setting.default for key, setting in defaults.SETTINGS.items()}
    for key, setting in defaults.SETTINGS.items():
        assert isinstance(setting.kind, schema.Kind), key
        assert setting.help and "\n" not in setting.help, key
        assert set(setting.choices) >= ({setting.default} if setting.choices else set()), key


def test_the_table_is_there_without_assertions_and_docstrings():
    program = "from gsjax.config import defaults; print(*defaults.SETTINGS)"
    listed = subprocess.run(
        [sys.executable, "-OO", "-c", program], capture_output=True, text=True, check=True
    )
    assert listed.stdout.split() == list(defaults.SETTINGS)


def test_a_setting_cannot_be_made_without_its_class():
    with pytest.raises(TypeError):
        schema.Setting(5, "initial weights")
    makers = (schema.shapes, schema.orders, schema.starts, schema.free)
    assert [make(5, "").kind for make in makers] == list(schema.Kind)


# What the encoder depends on, told apart from the table: none of it may become free by a slip.
SHAPING = (
    "method", "seed", "batch_size", "num_epochs", "num_steps", "data.source", "data.split",
    "data.image_size", "data.mean", "data.std", "encoder", "projector", "predictor", "similarity",
    "loss", "augment", "crops", "optimizer", "schedule",
)  # fmt: skip


def test_the_classes_are_those_that_were_meant():
    rows = [*METHODS.values(), *ENCODERS.values(), *OPTIMIZERS.values()]
    of_rows = {key for row in rows for key in row.settings}
    for key, setting in defaults.SETTINGS.items():
        is_shaping = key in SHAPING or key.partition(".")[0] in SHAPING or key in of_rows
        expected = schema.Kind.SHAPES if is_shaping else schema.Kind.FREE
        expected = {
            "data.memory_gb": schema.Kind.ORDERS,
            "encoder.init": schema.Kind.STARTS,
            "encoder.weights": schema.Kind.FREE,
            "encoder.network": schema.Kind.FREE,
            "encoder.attention": schema.Kind.FREE,
            "loss.chunks": schema.Kind.FREE,
        }.get(key, expected)
        assert setting.kind is expected, key


def test_every_setting_is_described():
    lines = settings.describe().splitlines()
    for key, setting in defaults.SETTINGS.items():
        (found,) = [line for line in lines if line[2:].startswith(f"{key} = {setting.written}")]
        assert (found[0] == "*") == (setting.kind is schema.Kind.FREE)
        assert all(choice in found for choice in setting.choices)
        assert lines[lines.index(found) + 1].strip() == setting.help
    assert "* log.every_steps = 10  (at least 1)" in lines
    assert "  similarity.threshold = 0.5  (from 0 to 1)" in lines


def write_run(folder, **overrides):
    config = checked(**overrides)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"config": config.to_dict()}))


def of_evaluation(workdir, path=None, **overrides):
    changes = {key.replace("__", "."): text for key, text in overrides.items()}
    return settings.check(settings.of_evaluation(str(workdir), path, changes))


def test_an_evaluation_takes_the_encoder_from_the_run(tmp_path):
    write_run(tmp_path, encoder__width="24", seed="9", knn__k="7", data__data_dir="/data")
    config = of_evaluation(tmp_path, knn__preset="instdisc", encoder__width="24")
    assert (config.encoder.width, config.seed, config.knn.k) == (24, 9, 7)
    assert (config.knn.preset, config.data.data_dir) == ("instdisc", "/data")
    file = tmp_path / "other.py"
    file.write_text(
        "from gsjax.config import defaults\n\n"
        "def get_config():\n"
        "    config = defaults.get_config()\n"
        "    config.encoder.width, config.knn.k = 64, 3\n"
        "    return config\n"
    )
    config = of_evaluation(tmp_path, str(file))
    assert (config.encoder.width, config.knn.k, config.data.data_dir) == (24, 3, "")
    config = of_evaluation(tmp_path, str(file), checkpoint__load="none")
    assert (config.encoder.width, config.seed) == (64, 5)


def test_an_evaluation_refuses_what_contradicts_the_run(tmp_path):
    write_run(tmp_path, encoder__width="24")
    with pytest.raises(UserError, match=r"encoder.width=16 contradicts .*config.json.* has 24"):
        of_evaluation(tmp_path, encoder__width="16")
    with pytest.raises(UserError, match="no run in "):
        of_evaluation(tmp_path / "nowhere")
    assert of_evaluation(tmp_path, data__memory_gb="1").data.memory_gb == 1
    file = tmp_path / "config.json"
    for text in ("{", '{"config": [1]}', "[]"):
        file.write_text(text)
        with pytest.raises(UserError, match="cannot be read"):
            of_evaluation(tmp_path)
    file.write_text('{"config": {"batch_size": "many"}}')
    with pytest.raises(UserError, match=r"config.json: batch_size is 'many'"):
        of_evaluation(tmp_path)
    file.write_text('{"config": {"new": {"deep": 3}}}')
    with pytest.raises(UserError, match=r"has new.deep, a setting"):
        of_evaluation(tmp_path)


def test_an_evaluation_takes_the_default_of_what_an_older_run_lacks(tmp_path):
    write_run(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    del content["config"]["encoder"]["stem"]
    file.write_text(json.dumps(content))
    config_file = tmp_path / "config.py"
    config_file.write_text(
        "from gsjax.config import defaults\n\n"
        "def get_config():\n"
        "    config = defaults.get_config()\n"
        "    config.encoder.stem = 'imagenet'\n"
        "    return config\n"
    )
    assert of_evaluation(tmp_path, str(config_file)).encoder.stem == "cifar"
    with pytest.raises(UserError, match="encoder.stem=imagenet contradicts"):
        of_evaluation(tmp_path, encoder__stem="imagenet")


def test_an_evaluation_of_another_runs_checkpoint(tmp_path):
    write_run(tmp_path / "a", encoder__width="24")
    write_run(tmp_path / "b", encoder__width="16")
    path = str(tmp_path / "a/checkpoints/12")
    assert of_evaluation(tmp_path / "b", checkpoint__load=path).encoder.width == 24


def test_a_run_of_an_older_gsjax_may_hold_settings_that_are_gone(tmp_path):
    write_run(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    content["config"]["knn"]["gone"] = 3
    del content["config"]["linear"]
    file.write_text(json.dumps(content))
    assert of_evaluation(tmp_path).linear.num_epochs == 90
    content["config"]["encoder"]["future"] = 3
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has encoder.future, a setting"):
        of_evaluation(tmp_path)

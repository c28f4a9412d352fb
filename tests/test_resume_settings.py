"""What a second start in a trained work directory may change, and what it says of the rest."""

import json
import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image

from gsjax.config import settings
from gsjax.config.defaults import SETTINGS
from gsjax.config.schema import Kind
from gsjax.errors import UserError
from gsjax.runtime import manifest, ownership
from gsjax.train.pretrain import pretrain

SMALL = {
    "num_steps": "4",
    "data.source": "folder",
    "data.split": "one",
    "data.labeled_split": "",
    "data.test_split": "",
    "batch_size": "16",
    "encoder.name": "toy",
    "encoder.width": "4",
    "data.image_size": "16",
    "projector.hidden_dim": "16",
    "projector.out_dim": "8",
    "knn.baselines": "false",
    "log.example_pairs": "0",
}


def write_pictures(folder, names):
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    for name in names:
        Image.fromarray(pixels).save(folder / f"{name}.png")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with splits of 40, 40 and 41 pictures, the first two of other names."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder / "one", range(40))
    write_pictures(folder / "two", range(1, 41))
    write_pictures(folder / "more", range(41))
    return folder


def configured(pictures, changes):
    config = settings.load(None)
    settings.override(config, SMALL | {"data.data_dir": str(pictures)} | changes)
    return settings.check(config)


def config_of(workdir):
    return json.loads((workdir / "config.json").read_text())["config"]


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """A work directory whose training is finished."""
    workdir = tmp_path_factory.mktemp("trained")
    pretrain(configured(pictures, {}), str(workdir))
    return workdir


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"encoder.name": "resnet34"}, "encoder.name: toy -> resnet34"),
        ({"encoder.width": "8"}, "encoder.width: 4 -> 8"),
        ({"projector.num_layers": "3"}, "projector.num_layers: 2 -> 3"),
        (
            {"method": "simsiam", "projector.last_bn": "true"},
            "method: simclr -> simsiam; projector.last_bn: False -> True",
        ),
        ({"encoder.dtype": "bfloat16"}, "encoder.dtype: float32 -> bfloat16"),
        ({"batch_size": "32"}, "batch_size: 16 -> 32"),
        ({"seed": "6"}, "seed: 5 -> 6"),
        ({"num_steps": "5"}, "num_steps: 4 -> 5"),
        (
            {"num_steps": "0", "num_epochs": "30"},
            "num_epochs: 0 -> 30; num_steps: 4 -> 0",
        ),
        ({"schedule.warmup_epochs": "0"}, "schedule.warmup_epochs: 10.0 -> 0.0"),
        ({"optimizer.learning_rate": "0.2"}, "optimizer.learning_rate: 0.3 -> 0.2"),
        ({"similarity.measure": "none"}, "similarity.measure: ioa -> none"),
        ({"augment.blur": "0.5"}, "augment.blur: 0.0 -> 0.5"),
        ({"data.memory_gb": "0"}, "data.memory_gb: 4.0 -> 0.0"),
        ({"data.split": "more"}, "data.split: one -> more; num_images: 40 -> 41; file_names: "),
        (
            {"data.source": "photos", "data.split": "train"},
            "data.source: folder -> photos; data.split",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_change_of_what_is_trained_is_refused(trained, pictures, changes, differences):
    before = (trained / "config.json").read_bytes()
    with pytest.raises(UserError) as caught:
        pretrain(configured(pictures, changes), str(trained))
    assert f"different settings ({differences}" in str(caught.value)
    assert f"--config.checkpoint.load={trained}/checkpoints/4" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (trained / "config.json").read_bytes() == before


def test_another_version_of_the_data_set_is_refused(tmp_path):
    facts = {"num_images": 40, "version": "cifar10/3.0.2", "hosts": None}
    folder = epath.Path(tmp_path)
    config = settings.load(None)
    ownership.claim(folder, config, facts)
    (folder / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match=r"\(version: cifar10/3.0.2 -> cifar10/3.1.0\)"):
        ownership.claim(folder, config, facts | {"version": "cifar10/3.1.0"})


@pytest.mark.parametrize(
    "changes",
    [
        {"log.every_steps": "1", "log.example_pairs": "3", "profile.first_step": "2"},
        {"knn.preset": "instdisc", "knn.k": "7", "knn.every_epochs": "0", "knn.baselines": "true"},
        {"data.test_split": "two", "features.batch_size": "64", "diagnostics.num_images": "9"},
        {"checkpoint.keep": "9", "checkpoint.keep_every": "2", "checkpoint.every_steps": "3"},
        {"linear.num_epochs": "1", "transfer.datasets": "cifar10", "retrieval.pictures": "1"},
        {"platform": "cpu", "remat": "true", "data.max_damaged": "0.5"},
    ],
    ids=" ".join,
)
def test_a_change_of_nothing_that_is_trained_goes_on(trained, pictures, tmp_path, capsys, changes):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    state = pretrain(configured(pictures, changes), str(workdir))
    assert int(state.step) == 4
    assert "finished: the checkpoint of step 4 exists" in capsys.readouterr().out
    written = settings.flatten(config_of(workdir))
    assert {key: str(written[key]).lower() for key in changes} == {
        key: str(SETTINGS[key].parse(key, text)).lower() for key, text in changes.items()
    }


def another(setting):
    """A value that is not the default."""
    value = setting.default
    if setting.choices:
        return next(choice for choice in setting.choices if choice != value)
    if isinstance(value, bool):
        return not value
    return f"{value}x" if isinstance(value, str) else value / 2 + 3


@pytest.mark.parametrize("key", SETTINGS)
def test_the_class_of_a_setting_decides(trained, pictures, tmp_path, key):
    setting = SETTINGS[key]
    assert isinstance(setting.kind, Kind)
    shutil.copy(trained / "config.json", tmp_path)
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "checkpoints" / "4" / manifest.FILE).touch()
    config = configured(pictures, {})
    facts = json.loads((tmp_path / "config.json").read_text())["data"]
    ownership.claim(epath.Path(tmp_path), config, facts)
    former, changed = settings.flatten(config.to_dict())[key], another(setting)
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict({key: changed})
    if setting.kind is Kind.FREE:
        ownership.claim(epath.Path(tmp_path), config, facts)
        assert settings.flatten(config_of(tmp_path))[key] == changed
    elif setting.kind is Kind.STARTS:
        ownership.claim(epath.Path(tmp_path), config, facts)
        assert settings.flatten(config_of(tmp_path))[key] == former
    else:
        with pytest.raises(UserError) as caught:
            ownership.claim(epath.Path(tmp_path), config, facts)
        assert f"settings ({key}: {former} -> {changed});" in str(caught.value)


def test_a_longer_run_goes_on_in_a_new_work_directory(trained, pictures, tmp_path):
    """As the refusal advises, and with the same command after an interruption."""
    changes = {"num_steps": "6", "checkpoint.load": f"{trained}/checkpoints/4"}
    state = pretrain(configured(pictures, changes), str(tmp_path))
    assert int(state.step) == 6
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} == {6}  # nothing before step 5
    assert json.loads((tmp_path / "environment.json").read_text())[0]["step"] == 4
    again = pretrain(configured(pictures, changes), str(tmp_path))
    np.testing.assert_array_equal(again.step, 6)


def test_a_run_that_is_no_longer_saves_nothing_and_says_so(trained, pictures, tmp_path):
    changes = {"seed": "6", "checkpoint.load": f"{trained}/checkpoints/4"}
    for steps in ("4", "3"):
        with pytest.raises(UserError, match=f"at step 4, but this run ends at step {steps}"):
            pretrain(configured(pictures, changes | {"num_steps": steps}), str(tmp_path))
    longer = configured(pictures, changes | {"num_steps": "5"})
    assert int(pretrain(longer, str(tmp_path)).step) == 5  # the refusals have left nothing behind


def test_a_folder_of_other_pictures_is_refused_and_one_that_moved_is_not(
    trained, pictures, tmp_path
):
    shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(pictures / "two", tmp_path / "other" / "one")
    with pytest.raises(UserError, match=r"\(file_names: \w{12} -> \w{12}\)"):
        pretrain(configured(tmp_path / "other", {}), str(tmp_path / "run"))
    shutil.copytree(pictures / "one", tmp_path / "moved" / "one")
    assert int(pretrain(configured(tmp_path / "moved", {}), str(tmp_path / "run")).step) == 4


def test_a_run_from_before_a_setting_and_a_fact_goes_on(trained, pictures, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    content = json.loads(file.read_text())
    del content["config"]["schedule"], content["data"]["file_names"]
    content["config"]["knn"]["gone"] = 3
    file.write_text(json.dumps(content))
    assert int(pretrain(configured(pictures, {}), str(tmp_path / "run")).step) == 4
    content["config"]["encoder"]["gone"] = 3
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="encoder.gone: 3 -> unknown to this version of gsjax"):
        pretrain(configured(pictures, {}), str(tmp_path / "run"))

"""Names of files and folders that some library would interpret, or cannot encode."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_tfds
from PIL import Image
from trainings import command, finish, flags, of_pictures

from gsjax.config import defaults
from gsjax.data import input_pipeline, sources, transforms
from gsjax.data.source import from_files
from gsjax.errors import UserError
from gsjax.evaluate import datasets, ground_truth, retrieval

CAFE = os.fsdecode(b"caf\xe9")  # in Latin-1: no UTF-8
NAMES = [
    "plain", CAFE, "caf\uac00", "café", "cafe\u0301", "a b", " a ", "-rf", "a[b]", "a*b", "a?b",
    "{a}", "a\\b", "a'b", 'a"b', "a#b", "a%20b", "%s", "$HOME", "~", "a:b", "a@2", "a\nb", "a\tb",
    "\x1b[31m", "🐱", "\u202eabc", "a,b", "a;b|c&d", "x" * 240,
]  # fmt: skip
# In TFDS' own file names braces and at-signs are patterns; here they are in the folder's name.
FOLDERS = [*NAMES, "{SHARD_INDEX}", "a@*", "tiny-train.tfrecord-00000-of-00003", "1.0.0"]


def config_of(source, data_dir, **settings):
    data = defaults.get_config().data
    data.source, data.data_dir = source, str(data_dir)
    data.update(settings)
    return data


def save(path, red):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (red, 0, 0)).save(path, "PNG")


def by_bytes(names):
    return sorted(names, key=os.fsencode)


def test_pictures_of_any_name_are_read_in_the_order_of_their_bytes(tmp_path):
    for number, name in enumerate(NAMES):
        save(tmp_path / f"{name}.png", 4 * number)
    source = sources.open_source(config_of("folder", tmp_path), "")
    expected = by_bytes(f"{name}.png" for name in NAMES)
    assert list(source.paths) == [f"{tmp_path}/{name}" for name in expected]
    (batch,) = input_pipeline.test_batches(source, transforms.Stretched(4), len(NAMES))
    reds = [4 * NAMES.index(name.removesuffix(".png")) for name in expected]
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], reds)
    assert [size for _, size, _ in source.files()] == [os.path.getsize(p) for p in source.paths]
    assert len(source.names_digest) == 12
    shown = [source.image_name(i) for i in range(len(NAMES))]
    assert all(name.isprintable() for name in shown)
    assert rf"{tmp_path}/caf\xe9.png" in shown and rf"{tmp_path}/a\nb.png" in shown


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_any_name(tmp_path, name):
    root = tmp_path / name
    save(root / "train" / name / "1.png", 0)
    save(root / "train/other/1.png", 40)
    source = sources.open_source(config_of("folder", root), "train", labeled=True)
    classes = by_bytes([name, "other"])
    shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    assert source.class_names == tuple(shown if c == name else c for c in classes)
    images = input_pipeline.load_images(source, range(2))
    assert [i[0, 0, 0] for i in images] == [0 if c == name else 40 for c in classes]
    assert source.name.isprintable() and source.dataset == shown
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    assert sources.open_source(config_of("folder", moved), "train").names_digest == (
        source.names_digest
    )
    shutil.copytree(root / "train", root / "test")
    dataset, data_dir = datasets.find_dataset(name, config_of("photos", ""), str(tmp_path))
    assert dataset.source == "folder" and data_dir == str(root)


def test_a_local_folder_may_look_like_a_bucket(tmp_path):
    root = tmp_path / "gs:" / "bucket"
    save(root / "train/a/1.png", 40)
    path = f"{tmp_path}/gs://bucket"
    source = sources.open_source(config_of("folder", path), "train", labeled=True)
    assert input_pipeline.load_images(source, [0])[0][0, 0, 0] == 40
    with pytest.raises(UserError, match="contains ://, which TFDS treats as a bucket"):
        sources.open_source(config_of("tiny", path), "train")
    for unknown in ("nothing://bucket", path):
        config = defaults.get_config()
        config.retrieval.data_dir = unknown
        with pytest.raises(UserError, match="^retrieval.data_dir=.* cannot be read"):
            retrieval.run(config, "")
    for source in ("folder", "tiny"):
        with pytest.raises(UserError) as error:
            sources.open_source(config_of(source, "nothing://bucket"), "train")
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for kind in ("tfrecord", "array_record"):
        tiny_tfds.write(folder / kind, kind)
    return folder


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("kind", ["memory", "sequence", "array_record"])
def test_tfds_directories_of_any_name(tmp_path, tiny, kind, name):
    root = tmp_path / name
    shutil.copytree(tiny / ("array_record" if kind == "array_record" else "tfrecord"), root)
    data = config_of("tiny", root, memory_gb=0.0 if kind == "sequence" else 4.0)
    if (kind, name) == ("array_record", CAFE):
        with pytest.raises(UserError, match=r"caf\\xe9/.* cannot be read as array_record"):
            sources.open_source(data, "train")
        return
    source = sources.open_source(data, "train", labeled=True)
    batches = list(input_pipeline.test_batches(source, transforms.central(8), 23))
    np.testing.assert_array_equal(batches[0]["label"], tiny_tfds.labels("train"))
    assert len(source.files()) == 3 and source.names_digest


def test_a_damaged_file_in_a_directory_of_another_encoding(tmp_path, tiny):
    root = tmp_path / CAFE
    shutil.copytree(tiny / "tfrecord", root)
    (root / "tiny/1.0.0/tiny-train.tfrecord-00001-of-00003").write_bytes(b"x")
    message = r"caf\\xe9/tiny/1.0.0/tiny-train.tfrecord-00001-of-00003 is missing or damaged"
    with pytest.raises(UserError, match=message):
        sources.open_source(config_of("tiny", root), "train")
    with pytest.raises(UserError, match="cannot prepare it there because the path is not UTF-8"):
        sources.open_source(config_of("cifar10", root), "train")


@pytest.mark.parametrize("name", ["a[b]", CAFE, "a\nb"])
def test_aircraft_and_retrieval_in_folders_of_any_name(tmp_path, name):
    folder = tmp_path / name / "fgvc-aircraft-2013b/data"
    save(folder / "images" / f"{CAFE}.jpg", 40)
    (folder / "variants.txt").write_bytes(b"F-16\n")
    (folder / "images_variant_test.txt").write_bytes(b"caf\xe9 F-16\n")
    aircraft = datasets.open_aircraft(str(tmp_path / name), "test")
    assert input_pipeline.load_images(aircraft, [0])[0][0, 0, 0] == 40
    save(tmp_path / name / "jpg" / f"{CAFE}.jpg", 40)
    save(tmp_path / name / "jpg" / "a[b].jpg", 80)
    answer = {"bbx": [0, 0, 5, 5], "easy": [0], "hard": [], "junk": []}
    content = {"imlist": [CAFE], "qimlist": ["a[b]"], "gnd": [answer]}
    for write, ending in ((json.dumps, "json"), (pickle.dumps, "pkl")):
        text = write(content)
        path = tmp_path / name / f"gnd_own.{ending}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        truth = ground_truth.load(tmp_path / name, "own")
        base, queries = ground_truth.image_paths(tmp_path / name, truth)
        source = from_files("own", "own", [p.as_posix() for p in [*base, *queries]])
        reds = [image[0, 0, 0] for image in input_pipeline.load_images(source, range(2))]
        assert reds == [40, 80]
    for missing in (CAFE, "\ud800", "a\nb"):
        truth = truth._replace(names=(missing * 2,))
        with pytest.raises(UserError, match=r"lacks 1 of 2 images, such as '.*.jpg'") as error:
            ground_truth.image_paths(tmp_path / name, truth)
        assert str(error.value).isprintable()


LOCALES = {
    "utf8": {"LC_ALL": "C.utf8", "PYTHONUTF8": "1"},
    "ascii": {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
OPEN = """
import sys
from gsjax.config import defaults
from gsjax.data import input_pipeline, sources
data = defaults.get_config().data
data.source, data.data_dir = "folder", sys.argv[1]
source = sources.open_source(data, "", labeled=True)
reds = [int(i[0, 0, 0]) for i in input_pipeline.load_images(source, range(source.num_examples))]
print(sys.getfilesystemencoding(), file=sys.stderr)
print(ascii([source.name, source.class_names, source.names_digest, reds]))
print(ascii([source.image_name(i) for i in range(len(reds))]))
"""


def test_the_locale_changes_nothing(tmp_path):
    root = tmp_path / CAFE
    for number, name in enumerate(["plain", CAFE, "caf\uac00", "café", "🐱", "z", "ÿ"]):
        save(root / name / f"{name}.png", 4 * number)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, root],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | environment,
        )
        for environment in LOCALES.values()
    ]
    (first, how), (second, otherwise) = (process.communicate() for process in processes)
    assert how.split()[-1] == b"utf-8" and otherwise.split()[-1] == b"ascii", otherwise
    assert first == second and b"caf\\\\xe9" in first


@pytest.mark.slow
def test_training_and_embeddings_in_an_ascii_locale(tmp_path):
    """From the names to config.json, and the paths next to embeddings."""
    root = tmp_path / CAFE
    for split in ("train", "test"):
        for number in range(16):
            folder = (CAFE, "é\n[x]")[number % 2]
            save(root / split / folder / f"{CAFE} {number:02}\n.png", 8 * number)
    (root / "train" / CAFE / f"{CAFE} 00\n.png").write_bytes(b"damaged")
    overrides = of_pictures(
        root, num_steps="4", data__max_damaged="0.5", features__keep="true",
        encoder__name="resnet18",  # which tells three plain colors apart
    )  # fmt: skip
    environment = os.environ | LOCALES["ascii"] | {"PYTHONIOENCODING": "ascii"}
    training = command(tmp_path / "run", *flags(**overrides), environment=environment)
    assert rf"{CAFE.replace(CAFE[-1], '')}\xe9 00\n.png" in finish(training)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["config"]["data"]["data_dir"].endswith(CAFE)
    finish(command(tmp_path / "run", "--job=embed", environment=environment))
    (file,) = (tmp_path / "run/embeddings").glob("*/*.parquet")
    rows = pq.read_table(file)
    assert sum(rows["valid"].to_pylist()) == 15
    names = by_bytes(map(str, (root / "train").glob("*/*.png")))
    escaped = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]
    assert rows["path"].to_pylist() == escaped and escaped != names
    names = [CAFE, "x" * 240, "a\n[b]"]
    for number, name in enumerate(names):
        save(root / "own/jpg" / f"{name}.jpg", 80 * number)
    answers = [{"bbx": [0, 0, 9, 7], "easy": [i], "hard": [], "junk": []} for i in range(3)]
    content = {"imlist": names, "qimlist": names, "gnd": answers}
    (root / "own/gnd_own.json").write_text(json.dumps(content))
    settings = [f"--config.retrieval.data_dir={root}", "--config.retrieval.datasets=own"]
    finish(command(tmp_path / "run", "--job=retrieval", *settings, environment=environment))
    (result,) = json.loads((tmp_path / "run/results/retrieval.json").read_text())
    assert result["scores"]["retrieval/easy_mP@1"] == 100
    drawn = {path.name for path in (tmp_path / "run/retrieval").glob("*.png")}
    assert drawn == {r"own_caf\xe9.png", f"own_{'x' * 26}_1.png", r"own_a\n[b].png"}

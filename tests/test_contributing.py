"""The examples of CONTRIBUTING.md, put where it says, work without any other change."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import FAST_COMPILATION, copy_parts

SMALL = {
    "data.source": "photos", "data.image_size": "16", "data.split": "train", "batch_size": "32",
    "num_steps": "4", "encoder.name": "tiny", "encoder.channels": "4", "optimizer.name": "lion",
    "projector.hidden_dim": "16", "projector.out_dim": "8", "knn.baselines": "false",
    "platform": "cpu",
}  # fmt: skip


def places(text):
    """(path, code) of every example, by the sentence before it."""
    for prose, code in re.findall(r"((?:(?!```).)*?)```python\n(.*?)```", text, re.DOTALL):
        words = " ".join(prose.split())
        new = re.findall(r"The (?:file|config), `([\w.]+)` in `([\w/]+)`", words)
        test = re.findall(r"The test, `(test_\w+\.py)`", words)
        added = re.findall(r"(?:The row, in|The test, in|In) `((?:gsjax|tests)/[\w/]+\.py)`", words)
        if test:
            yield f"tests/{test[-1]}", code
        elif added:
            yield added[-1], code
        elif new:
            yield "".join(reversed(new[-1])), code


def run(clone, *arguments):
    environment = os.environ | {"PYTHONPATH": str(clone), "XLA_FLAGS": FAST_COMPILATION}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=clone, env=environment, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_example_works(repo_root, tmp_path):
    parts = ("gsjax", "configs", "pyproject.toml")
    clone = copy_parts(tmp_path / "clone", *parts)
    (clone / "tests").mkdir()
    for file in (repo_root / "tests").glob("*.py"):
        (clone / "tests" / file.name).write_text(file.read_text())
    written = set()
    for path, code in places((repo_root / "CONTRIBUTING.md").read_text()):
        file = clone / path
        code = code.replace("configs/NAME.py", path)  # as the text says
        file.write_text((file.read_text() if file.exists() else "") + "\n\n" + code)
        written.add(path)
    assert len(written) == 16, sorted(written)
    pytest_command = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    tests = sorted(path for path in written if path.startswith("tests/"))
    assert re.search(r"\d\d passed", run(clone, *pytest_command, *tests))
    # The tests of every row take the new ones.
    suites = [f"tests/test_{name}.py" for name in ("methods", "step", "encoders", "configs")]
    chosen = "(variance or tiny) and not with_resnet"
    assert re.search(r"\d passed", run(clone, *pytest_command, *suites, "-k", chosen))
    run(clone, *pytest_command, "tests/test_settings.py")

    overrides = [f"--config.{key}={value}" for key, value in SMALL.items()]
    command = ("-m", "gsjax.main", "--workdir", str(tmp_path / "run"))
    run(clone, *command, "--config=configs/variance_cifar10.py", *overrides)
    run(clone, *command, "--job=centroid", "--config.platform=cpu")
    (result,) = json.loads((tmp_path / "run/results/centroid.json").read_text())
    assert result["method"] == "variance" and result["encoder"]["name"] == "tiny"
    assert result["scores"]["centroid/top1"] > 10

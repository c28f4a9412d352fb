"""The site of `make docs`: it reaches everything that is public, and its links lead somewhere."""

import ast
import html
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gsjax
from gsjax import methods
from gsjax.config import defaults, schema, settings
from gsjax.crops import Crops
from gsjax.evaluate import pairs
from gsjax.jobs import JOBS
from gsjax.runtime import parallel
from gsjax.train import monitors, optimizers, step


@pytest.fixture(scope="module")
def reference(repo_root):
    spec = importlib.util.spec_from_file_location("reference", repo_root / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(repo_root, reference):
    """{path: Markdown} of the whole site, with the generated tables."""
    folder = repo_root / "docs" / "pages"
    written = {
        file.relative_to(folder).as_posix(): reference.fill(file.read_text())
        for file in folder.rglob("*.md")
    }
    return written | reference.pages()


def _entries(nav):
    """The pages of a navigation, flat."""
    if isinstance(nav, str):
        return [nav]
    return [
        page
        for entry in (nav.values() if isinstance(nav, dict) else nav)
        for page in _entries(entry)
    ]


def _rows(page):
    """The cells of all tables of a page, without markup."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    cells = [re.split(r" \| ", line[2:-2]) for line in lines]
    return [[html.unescape(re.sub(r"</?code>|`", "", cell)) for cell in row] for row in cells]


def _docstrings(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""


def test_every_public_module_has_one_page_in_the_navigation(reference):
    walked = [module.name for module in pkgutil.walk_packages(gsjax.__path__, "gsjax.")]
    public = {"gsjax", *(name for name in walked if "._" not in name)}
    assert {"gsjax.losses", "gsjax.evaluate.knn"} < public
    expected = sorted([*(f"reference/{name}.md" for name in public), "reference/index.md"])
    pages = reference.pages()
    assert sorted(pages) == expected
    assert sorted(_entries(reference.navigation())) == expected
    for name in public:
        assert f"::: {name}\n" in pages[f"reference/{name}.md"]


def test_a_private_module_has_no_page(reference, tmp_path):
    package = tmp_path / "package"
    (package / "_inner").mkdir(parents=True)
    for name in ("__init__", "open", "_closed", "_inner/__init__", "_inner/open"):
        (package / f"{name}.py").write_text("")
    assert list(reference.public_modules(package)) == ["package", "package.open"]


def test_every_setting_is_in_the_table_with_all_that_is_said_of_it(pages):
    rows = {row[0]: row[1:] for row in _rows(pages["configs.md"]) if row[0] in defaults.SETTINGS}
    flat = settings.flatten(defaults.get_config())
    assert {key: ast.literal_eval(row[0]) for key, row in rows.items()} == flat
    for key, (_, values, what, second_start) in rows.items():
        setting = defaults.SETTINGS[key]
        assert (values, what) == (setting.allowed, setting.help)
        assert (second_start == "may change") == (setting.kind is schema.Kind.FREE)


def test_the_free_settings_and_every_config_are_named(pages, repo_root):
    page = re.sub(r"&#(\d+);", lambda match: chr(int(match[1])), pages["configs.md"])
    listed = page.partition("may change, because")[2].partition("\n\n")[2].partition("\n")[0]
    names = [re.sub(r"</?code>", "", name) for name in listed.split(", ")]
    for key, setting in defaults.SETTINGS.items():
        is_listed = key in names or f"{key.partition('.')[0]}.*" in names
        assert is_listed == (setting.kind is schema.Kind.FREE), key
    files = {file.relative_to(repo_root).as_posix() for file in repo_root.glob("configs/**/*.py")}
    rows = {row[0]: row[1] for row in _rows(pages["configs.md"]) if row[0].startswith("configs/")}
    assert set(rows) == files
    assert all(rows.values())


def test_every_job_is_in_the_table_and_described(pages):
    rows = {row[0].split("]")[0][1:]: row for row in _rows(pages["jobs.md"]) if "](#" in row[0]}
    assert {name: row[1] for name, row in rows.items()} == {n: job.help for n, job in JOBS.items()}
    for name, job in JOBS.items():
        assert f"\n## {name}\n" in pages["jobs.md"]
        assert rows[name][2] == f"[{job.module}](reference/{job.module}.md)"


def metrics_of_a_step(method_name):
    config = defaults.get_config()
    config.method, config.encoder.name, config.crops.min_overlap = method_name, "toy", 0.1
    mesh = parallel.create_mesh(config.batch_size, jax.devices()[:1])
    optimizer = optimizers.create_optimizer(config, lambda step: 0.0)
    method = methods.create_method(config)
    key = jax.random.key(0)
    size = config.data.image_size
    crops = Crops(
        jax.ShapeDtypeStruct((config.batch_size, 2, size, size, 3), jnp.uint8),
        jax.ShapeDtypeStruct((config.batch_size, 2, 4), jnp.float32),
    )
    state = step.create_state_fn(config, method, optimizer, mesh).eval_shape(key)
    train_step = step.create_train_step(config, method, optimizer, mesh, 10, 10)
    _, values = jax.eval_shape(train_step, state, {"global": crops}, key)
    del values["finite"]  # for the loop, which does not write it
    return values


def test_every_metric_of_pre_training_is_explained(pages):
    values = {name for method in methods.METHODS for name in metrics_of_a_step(method)}
    embeddings = {"embeddings": np.eye(3)[:, None]}
    scalars = monitors.summarize(dict.fromkeys(values, 0.0) | embeddings)
    of_the_clock = {"learning_rate", "images_per_second", "data_wait"}
    expected = {f"train/{name}" for name in {*scalars, *of_the_clock}}
    found = {row[0] for row in _rows(pages["diagnostics.md"])}
    assert {name for name in found if name.startswith("train/")} == expected
    assert {name for name in found if name.startswith("knn/")} == {"knn/top1", "knn/pixels_top1"}


def test_every_score_of_the_diagnostics_is_explained(pages):
    views, overlap = np.eye(3)[:, None].repeat(2, axis=1), np.ones((3, 2))
    scores, _ = pairs.summarize(views, views, overlap, overlap)
    found = {row[0] for row in _rows(pages["diagnostics.md"])}
    assert {name for name in found if name.startswith("diagnostics/")} == scores.keys()
    section = pages["jobs.md"].partition("\n## diagnostics\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(diagnostics/\w+)`", section)) == scores.keys()


def test_links_between_pages_lead_to_a_page_and_a_heading(pages, reference):
    seen = 0
    for path, text in pages.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.S)):
            name, _, anchor = target.partition("#")
            page = os.path.normpath(os.path.join(os.path.dirname(path), name)) if name else path
            assert page in pages, f"{path}: {target}"
            if anchor.startswith("gsjax."):
                module, _, member = anchor.rpartition(".")
                assert page == f"reference/{module}.md", f"{path}: {target}"
                tree = ast.parse(reference.public_modules()[module].read_text())
                assert member in {getattr(node, "name", "") for node in tree.body}, target
            elif anchor:
                headings = re.findall(r"^#+ (.+)$", pages[page], re.M)
                slugs = {re.sub(r"\W+", "-", heading.lower()) for heading in headings}
                assert anchor in slugs, f"{path}: {target}"
            seen += 1
    assert seen > 50


def test_files_that_the_texts_name_exist(pages, repo_root):
    texts = dict(pages)
    for name in ("README.md", "CONTRIBUTING.md"):
        texts[name] = (repo_root / name).read_text()
        for target in re.findall(r"\]\(([^)\s]+)\)", texts[name]):
            file = target.partition("#")[0]
            assert target.startswith("https://") or (repo_root / file).exists(), target
    for path, text in texts.items():
        text = re.sub(r"https://\S+", "", text)  # the notebooks' addresses on Colab
        for file in re.findall(r"\b(?:configs|gsjax|docs)/[\w/]+\.\w+", text):
            is_example = any(letter.isupper() for letter in file)  # configs/sweeps/NAME.py
            assert is_example or (repo_root / file).exists(), f"{path}: {file}"


def test_docstrings_hold_no_html_and_no_links_by_accident(reference):
    for name, file in reference.public_modules().items():
        for text in _docstrings(file):
            plain = re.sub(r"`[^`]*`", "", text)
            assert "`" not in plain, f"{name}: an odd number of backticks in {text!r}"
            found = re.findall(r"<[A-Za-z/][^>]*>|\][(\[]", plain)
            assert not found, f"{name}: put {found} in backticks"


@pytest.mark.slow
def test_site_builds_without_warnings_and_needs_no_network(repo_root, reference, tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        message = "mkdocs is not installed: make test-all installs it, or pip install -e '.[docs]'"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/mkdocs.yml")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    environment["PYTHONPATH"] = str(repo_root)
    site = tmp_path / "site"
    result = subprocess.run(
        (*command, "-d", site), cwd=repo_root, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    for path in ("index.md", "configs.md", *reference.pages()):
        page = (site / path).with_suffix(".html").read_text()
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?:https?:)?//', page)
        assert not loaded, f"{path}: {loaded}"
    losses = (site / "reference" / "gsjax.losses.html").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", "", losses))
    assert "[N, D] embeddings of the first views." in text
    assert 'id="gsjax.losses.graded_nt_xent"' in losses
    assert "_log_denominators" not in re.sub(r"<details.*?</details>", "", losses, flags=re.S)


def test_the_tests_that_the_guide_names_are_there(repo_root):
    text = (repo_root / "docs/pages/reliability.md").read_text()
    named = re.findall(r"(test_\w+\.py)::(test_\w+)", text)
    assert len(named) > 30
    for file, name in named:
        assert f"def {name}(" in (repo_root / "tests" / file).read_text(), (file, name)

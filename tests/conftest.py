"""What all tests share. JAX and TensorFlow read these variables when they are imported."""

import gc
import os
import pathlib
import shutil
import signal

import pytest
import toy_main

# Compiling takes most of the tests' time; without LLVM's optimization it is less than half.
FAST_COMPILATION = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=4", FAST_COMPILATION]
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"  # a [N] + [N, 1] that was not meant is an error
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

# A shell without job control starts what it puts into the background with Ctrl-C ignored, which the
# processes of tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
# So does nohup with SIGHUP; what has a handler here has the default there.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

toy_main.add_row()


def pytest_collection_finish() -> None:
    """Spares every later collection of garbage the modules, which stay."""
    gc.freeze()


REPO_ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_root() -> pathlib.Path:
    """The root of the clone."""
    return REPO_ROOT


def copy_parts(target: pathlib.Path, *names: str) -> pathlib.Path:
    """Copies files and folders of the clone into a new folder, without what tools have made."""
    target.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in names:
        if (REPO_ROOT / name).is_dir():
            shutil.copytree(REPO_ROOT / name, target / name, ignore=ignored)
        else:
            shutil.copy(REPO_ROOT / name, target)
    return target


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of prepared data sets.

    It is GSJAX_TEST_DATA, or shared/data beside the clone. Without it the test is skipped; in
    continuous integration it fails, unless GSJAX_TEST_DATA is the empty string.
    """
    setting = os.environ.get("GSJAX_TEST_DATA")
    if setting == "":
        pytest.skip("GSJAX_TEST_DATA is empty: there are no data sets here")
    folder = pathlib.Path(setting) if setting else REPO_ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        message = f"no data sets in {folder}: set GSJAX_TEST_DATA to their folder"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache_home(tmp_path_factory: pytest.TempPathFactory):
    """Keeps the user's compilation cache away from the tests, and the tests' away from the user.

    It also holds the programs of tests that do not start as gsjax does: most are compiled often.
    """
    import jax

    home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        jax.config.update("jax_compilation_cache_dir", str(home / "gsjax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        yield


@pytest.fixture
def x64():
    """Arrays of 64 bits."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["cpu", "default"])
def branch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each branch of layers that depend on the platform, both computed on this one."""
    from jax import lax

    def take(*arguments, cpu, default):
        return (cpu if request.param == "cpu" else default)(*arguments)

    monkeypatch.setattr(lax, "platform_dependent", take)
    return request.param


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The work directory of a pre-training."""
    import evaluations

    workdir = tmp_path_factory.mktemp("trained") / "run"
    evaluations.train(workdir)
    return workdir


@pytest.fixture
def workdir(trained: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of it, for one test."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"

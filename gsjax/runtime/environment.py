"""Records where and with what a run trained: one entry per start, in `environment.json`."""

import json
import os
import pathlib
import platform
import subprocess
import time
from importlib import metadata
from typing import Any

from etils import epath

import gsjax
from gsjax.errors import UserError
from gsjax.runtime import files, metrics, parallel

_FILE = "environment.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow", "tensorflow-cpu")


def describe() -> dict[str, Any]:
    """Returns versions, devices and, if gsjax runs from a clone, its commit."""
    return {
        "gsjax": gsjax.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "devices": metrics.device_line(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "system": platform.platform(),
    }


def record_start(workdir: epath.Path, step: int) -> None:
    """Adds this start, at `step`, to the run's `environment.json`; only the primary host writes.

    Drops earlier starts at or after `step`, since their steps are redone.
    """
    if not parallel.is_primary():
        return
    file = workdir / _FILE
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    kept = [start for start in read(workdir) if start["step"] < step]
    starts = [*kept, {"step": step, "time": now, **describe()}]
    with files.write_errors(file):
        files.write_text(file, json.dumps(starts, indent=1) + "\n")


def read(workdir: epath.Path) -> list[dict[str, Any]]:
    """Returns a run's starts, oldest first; empty if none were recorded.

    Raises:
      UserError: the file is damaged.
    """
    file = workdir / _FILE
    if not file.exists():
        return []
    try:
        starts = json.loads(file.read_text())
        if not all(isinstance(start["step"], int) for start in starts):
            raise ValueError("not a list of starts")
        return starts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: move it away") from error


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Returns the commit of the package's clone, with a + if files were modified; else None."""
    root = pathlib.Path(gsjax.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=7", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--", "gsjax") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: pathlib.Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

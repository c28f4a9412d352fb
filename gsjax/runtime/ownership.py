"""Ownership of a work directory: `config.json` records what its checkpoints were trained with."""

import json
from typing import Any

import jax
import ml_collections
from etils import epath

import gsjax
from gsjax.config import settings
from gsjax.errors import UserError
from gsjax.runtime import checkpoints, files, metrics, parallel


def claim(
    workdir: epath.Path, config: ml_collections.ConfigDict, facts: dict[str, int | str | None]
) -> None:
    """Writes `config.json`, after comparing it with the existing one if there are checkpoints.

    The primary host does this; the others compare their settings and data with the primary's.

    Args:
      workdir: created if missing.
      config: the full configuration.
      facts: what else determines the images: their number, a digest of their file names, the
        dataset version and, where it matters, the number of hosts.

    Raises:
      UserError: the directory is not writable, or belongs to a run that trains something else; the
        message lists the differences.
    """
    ours = {"config": config.to_dict(), "data": facts}
    compare_hosts(parallel.from_primary(lambda: _claim(workdir, ours)), ours)


def renew(
    workdir: epath.Path, config: ml_collections.ConfigDict, facts: dict[str, int | str | None]
) -> None:
    """Rewrites `claim`'s `config.json` if it has been deleted; call it before each save.

    Checkpoints without a `config.json` belong to no run and are refused.

    Raises:
      UserError: the directory is not writable.
    """
    if not parallel.is_primary() or (workdir / "config.json").exists():
        return
    metrics.log(
        f"warning: {files.shown(workdir)} was moved or deleted during training: recreating it for "
        "later checkpoints"
    )
    with files.write_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        _write(workdir, {"config": config.to_dict(), "data": facts})


def compare_hosts(first: dict[str, Any], ours: dict[str, Any]) -> None:
    """Checks that this host was started with the same settings and data as the primary.

    Every setting counts: even those that may change with a start affect what hosts do together.

    Args:
      first: `config` and `data` of the primary host.
      ours: `config` and `data` of this host.

    Raises:
      UserError: they differ.
    """
    differences = settings.all_differences(first["config"], ours["config"])
    differences += _data_differences(first, ours)
    if differences:
        raise UserError(
            f"process {jax.process_index()} has different settings or data than process 0 "
            f"({'; '.join(differences)}): start all with the same command and files"
        )


def _claim(workdir: epath.Path, ours: dict[str, Any]) -> dict[str, Any]:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        recorded = ours
        if checkpoints.any_exist(workdir):
            former = _compare_start(workdir, ours)
            recorded = ours | {"config": settings.with_start_of(former["config"], ours["config"])}
        _write(workdir, recorded)
    except files.error_types(AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"--workdir {workdir}: {type(error).__name__}: {error}") from error
    return ours


def _write(workdir: epath.Path, ours: dict[str, Any]) -> None:
    content = {"gsjax": gsjax.__version__, **ours}
    files.write_text(workdir / "config.json", json.dumps(content, indent=2, sort_keys=True) + "\n")


def _compare_start(workdir: epath.Path, ours: dict[str, Any]) -> dict[str, Any]:
    """Compares this start with what the existing checkpoints were trained with; returns that."""
    file = workdir / "config.json"
    if not file.exists():
        raise UserError(
            f"{file}, which records the settings of the checkpoints next to it, is missing: "
            "restore it, or choose another --workdir"
        )
    former = json.loads(file.read_text())
    differences = settings.shaping_differences(former["config"], ours["config"])
    differences += _data_differences(former, ours)
    if not differences:
        return former
    advice = "use the former settings, or a new --workdir"
    steps = checkpoints.saved_steps(workdir)
    if steps:
        newest = workdir / "checkpoints" / str(steps[-1])
        advice += (
            f"; to continue from these weights there, add --config.checkpoint.load={newest} and "
            f"train beyond step {steps[-1]}"
        )
    raise UserError(
        f"{workdir} contains a run with different settings ({'; '.join(differences)}); {advice}"
    )


def _data_differences(former: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {former['data'][name]} -> {value}"
        for name, value in ours["data"].items()
        if former["data"].get(name, value) != value  # an older run may lack it
    ]

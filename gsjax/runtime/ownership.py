"""Whose a work directory is: the `config.json` of what its checkpoints were trained with."""

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
    """Writes `config.json`, or compares it with that of the checkpoints that are there.

    The first host does so for all; the others compare their settings and data with its.

    Args:
      workdir: made if it is not there.
      config: the whole configuration.
      facts: what else decides which images come: their number, a digest of their files' names,
        the data set's version, and the number of hosts where it matters.

    Raises:
      UserError: the directory cannot be written, or belongs to a run that trains something else;
        the differences are listed.
    """
    ours = {"config": config.to_dict(), "data": facts}
    compare_hosts(parallel.from_primary(lambda: _claim(workdir, ours)), ours)


def renew(
    workdir: epath.Path, config: ml_collections.ConfigDict, facts: dict[str, int | str | None]
) -> None:
    """Writes `config.json` again, as `claim` did, if it has gone since; call it before each save.

    A checkpoint without it belongs to nobody and is refused.

    Raises:
      UserError: the directory cannot be written.
    """
    if not parallel.is_primary() or (workdir / "config.json").exists():
        return
    metrics.say(
        f"warning: {files.shown(workdir)} was moved or deleted during the training: it is made "
        "again with the checkpoints from now on"
    )
    with files.told(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        _write(workdir, {"config": config.to_dict(), "data": facts})


def compare_hosts(first: dict[str, Any], ours: dict[str, Any]) -> None:
    """Compares what this host was started with with the first one's.

    Every setting counts: also those that may change with a start decide what hosts do together.

    Args:
      first: `config` and `data` of the first host.
      ours: those of this one.

    Raises:
      UserError: they differ.
    """
    differences = settings.all_differences(first["config"], ours["config"])
    differences += _data_differences(first, ours)
    if differences:
        raise UserError(
            f"process {jax.process_index()} was started with other settings or data than the first "
            f"one ({'; '.join(differences)}): start all with the same command on the same files"
        )


def _claim(workdir: epath.Path, ours: dict[str, Any]) -> dict[str, Any]:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if checkpoints.is_begun(workdir):
            _compare_start(workdir, ours)
        _write(workdir, ours)
    except files.error_types(AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"--workdir {workdir}: {type(error).__name__}: {error}") from error
    return ours


def _write(workdir: epath.Path, ours: dict[str, Any]) -> None:
    content = {"gsjax": gsjax.__version__, **ours}
    files.write_text(workdir / "config.json", json.dumps(content, indent=2, sort_keys=True) + "\n")


def _compare_start(workdir: epath.Path, ours: dict[str, Any]) -> None:
    """Compares this start with what the checkpoints that are there were trained with."""
    file = workdir / "config.json"
    if not file.exists():
        raise UserError(
            f"{file} is missing, which says what the checkpoints beside it were trained with: "
            "bring it back, or choose another --workdir"
        )
    former = json.loads(file.read_text())
    differences = settings.shaping_differences(former["config"], ours["config"])
    differences += _data_differences(former, ours)
    if not differences:
        return
    advice = "take the former settings, or a new --workdir"
    steps = checkpoints.saved_steps(workdir)
    if steps:
        newest = workdir / "checkpoints" / str(steps[-1])
        advice += (
            f"; to go on from these weights there, add --config.checkpoint.load={newest} and end "
            f"later than at step {steps[-1]}"
        )
    told = f"{workdir} holds a run with other settings ({'; '.join(differences)})"
    raise UserError(f"{told}; {advice}")


def _data_differences(former: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {former['data'][name]} -> {value}"
        for name, value in ours["data"].items()
        if former["data"].get(name, value) != value  # an older run may lack it
    ]

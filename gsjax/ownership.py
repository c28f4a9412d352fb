"""Whose a work directory is: the `config.json` of what its checkpoints were trained with."""

import json
from typing import Any

import jax
import ml_collections
from etils import epath

import gsjax
from gsjax import checkpoints, files, parallel, settings
from gsjax.errors import UserError


def claim(
    workdir: epath.Path, config: ml_collections.ConfigDict, facts: dict[str, int | str | None]
) -> None:
    """Writes `config.json`, or compares it with that of the checkpoints that are there.

    The first host does so for all; the others compare their settings and data with its.

    Args:
      workdir: made if it is not there.
      config: the whole configuration.
      facts: what else decides which images come: their number, a digest of their files' names,
        and the number of hosts where it matters.

    Raises:
      UserError: the directory cannot be written, or belongs to a run that trains something else;
        the differences are listed.
    """
    ours = {"config": config.to_dict(), "data": facts}
    first = parallel.from_primary(lambda: _claim(workdir, ours))
    differences = _differences(first, ours)
    if differences:
        raise UserError(
            f"process {jax.process_index()} was started with other settings or data than the first "
            f"one ({'; '.join(differences)}): start all with the same command on the same files"
        )


def _claim(workdir: epath.Path, ours: dict[str, Any]) -> dict[str, Any]:
    file = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        steps = checkpoints.saved_steps(workdir)
        if steps and not file.exists():
            raise UserError(
                f"{file} is missing, which says what the checkpoints beside it were trained with: "
                "bring it back, or choose another --workdir"
            )
        if steps:
            differences = _differences(json.loads(file.read_text()), ours)
            if differences:
                raise UserError(
                    f"{workdir} holds a run with other settings ({'; '.join(differences)}); take "
                    "the former settings, or a new --workdir; to go on from these weights there, "
                    f"add --config.checkpoint.load={workdir / 'checkpoints' / str(steps[-1])}"
                )
        content = {"gsjax": gsjax.__version__, **ours}
        files.write_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
    except (*files.ERRORS, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"--workdir {workdir}: {type(error).__name__}: {error}") from error
    return ours


def _differences(former: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    return settings.shaping_differences(former["config"], ours["config"]) + [
        f"{name}: {former['data'][name]} -> {value}"
        for name, value in ours["data"].items()
        if former["data"].get(name, value) != value  # an older run may lack it
    ]

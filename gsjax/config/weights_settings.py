"""The settings that belong to the weights that `encoder.weights` names."""

from collections.abc import Mapping

import ml_collections
from etils import epath

from gsjax.config.defaults import SETTINGS
from gsjax.errors import UserError
from gsjax.models import weights
from gsjax.models.weights import reader
from gsjax.models.weights.formats import Found
from gsjax.runtime import files


def is_run(path: str) -> bool:
    """Whether a path is a work directory of gsjax or one of its checkpoints."""
    folder = files.absolute(path)
    holds_weights = any((folder / name).exists() for name in reader.FOLDER_FILES)
    is_workdir = (folder / "config.json").exists() and not holds_weights
    return is_workdir or _is_checkpoint(folder)


def _is_checkpoint(folder: epath.Path) -> bool:
    return folder.parent.name == "checkpoints" and folder.name.isdecimal()


def apply(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets what the weights determine: the architecture, and how to feed images to it.

    A run of gsjax is named by `checkpoint.load` instead, which `encoder.weights` is short for.

    Args:
      config: the whole configuration.
      overrides: {key: text} of the command line. The architecture cannot be overridden; the size
        and normalization of the images and the padding can.

    Raises:
      UserError: the weights cannot be read, or an override contradicts them.
    """
    path = config.encoder.weights
    if "checkpoint.load" in overrides:
        raise UserError("encoder.weights and checkpoint.load each name an encoder: give one")
    with config.unlocked():
        if is_run(path):
            config.encoder.weights, config.checkpoint.load = "", files.absolute(path).as_posix()
            return
        found = weights.find(path, config.encoder.network)
        for key, value in checked(found).items():
            if key not in overrides:
                config.update_from_flattened_dict({key: value})
            elif _is_fixed(key, found) and SETTINGS[key].parse(key, overrides[key]) != value:
                raise UserError(
                    f"{key}={overrides[key]} contradicts {files.shown(found.content.path)}, which "
                    f"has {value}: omit it, evaluations read it from there"
                )


def checked(found: Found) -> dict[str, int | float | str | bool]:
    """Returns the settings of weights, after checking them.

    Raises:
      UserError: one is unknown or has an impossible value.
    """
    content = found.content
    shown = files.shown(content.path.parent / "config.json" if content.config else content.path)
    for key, value in found.settings.items():
        if key not in SETTINGS:
            raise UserError(f"{shown} has {key}, a setting unknown to this version of gsjax")
        try:
            SETTINGS[key].check(key, value)
        except UserError as error:
            raise UserError(f"{shown}: {error}") from error
    return found.settings


def _is_fixed(key: str, found: Found) -> bool:
    return key.startswith("encoder.") and key not in found.network.family.OVERRIDABLE

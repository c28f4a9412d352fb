"""What the `config.json` of an exported folder, or of one of timm, says about its weights."""

import json
import re
from collections.abc import Mapping
from typing import Any

from gsjax.config.schema import Value
from gsjax.errors import UserError
from gsjax.models.weights.family import Family
from gsjax.models.weights.reader import Content, shown
from gsjax.runtime import files

# Settings that an exported folder may bring.
_OF_FOLDER = re.compile(
    r"encoder\.(?!weights$|network$|init$).+|data\.(image_size|mean|std)"
    r"|features\.(interpolation|crop_pct)"
)


def settings(content: Content, encoder: str, family: Family) -> tuple[str, dict[str, Value]] | None:
    """Returns (format, settings), or None if there is no such file.

    Args:
      content: the weights and the file.
      encoder: `encoder.name` of the weights.
      family: module with the names of its weights.

    Raises:
      UserError: the file has other settings, is damaged or names another architecture.
    """
    config, file = content.config, files.shown(content.path.parent / "config.json")
    own = config.get("gsjax")
    if isinstance(own, dict) and isinstance(own.get("settings"), dict):
        for key in own["settings"]:
            if not _OF_FOLDER.fullmatch(key):
                raise UserError(f"{file} has {shown(key)}, which is no setting of an encoder")
        return "gsjax", own["settings"]
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        return None
    if family.timm_encoder(architecture) != encoder:
        raise UserError(
            f"{file} names the architecture {shown(architecture)}, but gsjax would read the "
            f"weights as {encoder}"
        )
    timm = config.get("pretrained_cfg", config)  # older versions had all in one dictionary
    try:
        return "timm", _of_timm(dict(timm)) | family.of_timm(config)
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} has an impossible pretrained_cfg: {shown(json.dumps(timm))}"
        ) from error


def _of_timm(config: Mapping[str, Any]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name in ("mean", "std"):
        if name in config:
            found[f"data.{name}"] = ",".join(str(float(value)) for value in config[name])
    if "input_size" in config:
        found["data.image_size"] = int(config["input_size"][-1])
    if "interpolation" in config:
        found["features.interpolation"] = str(config["interpolation"])
    if "crop_pct" in config:
        found["features.crop_pct"] = float(config["crop_pct"])
    return found

"""Which settings the chosen method, encoder and optimizer read."""

from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from gsjax.config.defaults import SETTINGS
from gsjax.config.schema import Kind, Row
from gsjax.config.settings import flatten
from gsjax.errors import UserError
from gsjax.methods import METHODS
from gsjax.models import ENCODERS
from gsjax.train import OPTIMIZERS

# The settings that choose a row, whose own settings are read only then.
_TABLES: dict[str, Mapping[str, Row]] = {
    "method": METHODS,
    "encoder.name": ENCODERS,
    "optimizer.name": OPTIMIZERS,
}


def unused(config: Mapping[str, Any]) -> set[str]:
    """Returns the settings that belong only to methods, encoders and optimizers not chosen."""
    flat = {key: setting.default for key, setting in SETTINGS.items()} | flatten(config)
    chosen: set[str] = set()
    others: set[str] = set()
    for key, table in _TABLES.items():
        for name, row in table.items():
            (chosen if name == flat[key] else others).update(row.settings)
    return others - chosen


def encoder_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the group `encoder` without the settings of other encoders or of files."""
    others = unused(config.to_dict())
    return {
        name: value
        for name, value in config.encoder.items()
        if f"encoder.{name}" not in others and SETTINGS[f"encoder.{name}"].kind is Kind.SHAPES
    }


def check(config: ml_collections.ConfigDict, keys: Iterable[str]) -> None:
    """Checks that the chosen method, encoder and optimizer read the settings of the command line.

    Raises:
      UserError: a setting belongs only to others.
    """
    flat = flatten(config)
    for key in sorted(unused(flat).intersection(keys)):
        for choice, table in _TABLES.items():
            if names := [name for name, row in table.items() if key in row.settings]:
                raise UserError(
                    f"{key} has no effect with {choice}={flat[choice]}: omit it, or choose "
                    f"{' or '.join(names)}"
                )

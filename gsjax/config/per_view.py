"""The augmentation of each view, where settings have one value per view."""

from typing import Any

import ml_collections

from gsjax.config.defaults import SETTINGS


def augmentations(
    settings: ml_collections.ConfigDict, num_views: int = 0
) -> list[ml_collections.ConfigDict]:
    """Returns the settings of each view, with numbers instead of lists.

    Args:
      settings: the group `augment` of a checked config.
      num_views: V; if 0, as many as the longest list has values.
    """
    lists = {
        name: SETTINGS[f"augment.{name}"].numbers(f"augment.{name}", value)
        for name, value in settings.to_dict().items()
        if SETTINGS[f"augment.{name}"].per_view and isinstance(value, str)
    }
    count = num_views or max(map(len, lists.values()), default=1)
    if not lists:
        return [settings] * count
    return [_of_view(settings, lists, view) for view in range(count)]


def _of_view(group: ml_collections.ConfigDict, lists: dict[str, Any], view: int) -> Any:
    own = group.copy_and_resolve_references()
    with own.unlocked():
        for name, numbers in lists.items():
            own[name] = numbers[min(view, len(numbers) - 1)]
    return own

"""The augmentation of each view, where settings have one value per view."""

from collections.abc import Iterator
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
    lists = _lists(settings)
    count = num_views or max(map(len, lists.values()), default=1)
    if not lists:
        return [settings] * count
    return [_of_view(settings, lists, view) for view in range(count)]


def too_long(config: ml_collections.ConfigDict) -> Iterator[str]:
    """Yields a message for every list with more values than there are views."""
    for name, numbers in _lists(config.augment).items():
        of_boxes = name in ("min_scale", "max_scale")
        count = 2 if of_boxes else 2 + config.crops.local_views
        if len(numbers) > count:
            local = "; local ones have crops.local_min_scale and local_max_scale"
            views = f"{count} global views{local}" if of_boxes else f"{count} views"
            yield f"augment.{name} lists {len(numbers)} values for {views}"


def _lists(settings: ml_collections.ConfigDict) -> dict[str, tuple[float, ...]]:
    return {
        name: SETTINGS[f"augment.{name}"].numbers(f"augment.{name}", value)
        for name, value in settings.to_dict().items()
        if SETTINGS[f"augment.{name}"].per_view and isinstance(value, str)
    }


def _of_view(group: ml_collections.ConfigDict, lists: dict[str, Any], view: int) -> Any:
    own = group.copy_and_resolve_references()
    with own.unlocked():
        for name, numbers in lists.items():
            own[name] = numbers[min(view, len(numbers) - 1)]
    return own

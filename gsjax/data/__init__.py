"""From images to batches: sources, decoding, crops; the table of sources.

Importing it loads neither a source nor TensorFlow. A source is a function (data, split, labeled) ->
`gsjax.data.source.Source` that takes the config group `data`.
"""

from collections.abc import Iterator

import ml_collections

from gsjax.config.schema import Row


def _check_folder(config: ml_collections.ConfigDict) -> Iterator[str]:
    if not config.data.data_dir:
        yield "data.source=folder requires data.data_dir, the folder of the images"


def _check_list(config: ml_collections.ConfigDict) -> Iterator[str]:
    if not config.data.split:
        yield "data.source=list requires data.split, a text file with the path of an image per line"


SOURCES: dict[str, Row] = {
    "folder": Row(
        "gsjax.data.sources", "images in a folder", check=_check_folder, function="open_folder"
    ),
    "list": Row(
        "gsjax.data.sources",
        "images that a text file names",
        check=_check_list,
        function="open_list",
    ),
    "photos": Row("gsjax.data.sources", "tiles of built-in photographs", function="open_photos"),
}
# For every other name.
TFDS = Row("gsjax.data.prepared", "a TensorFlow Datasets data set", function="open_tfds")


def find_source(name: str) -> Row:
    """Returns the row for a `data.source`."""
    return SOURCES.get(name, TFDS)

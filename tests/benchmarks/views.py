"""Images per second of the input pipeline by number of views, next to decoding alone.

    python tests/benchmarks/views.py --source caltech101 --data_dir FOLDER

Two global views of 224 pixels, and 0, 2 and 6 local ones of 96, of the same images in the same
order; they take turns.
"""

import argparse
import statistics
import time

from gsjax.config import settings
from gsjax.data import input_pipeline, sources
from gsjax.runtime.tensorflow_setup import tf

LOCAL_VIEWS = (0, 2, 6)
SKIPPED = 4


def configured(arguments, local_views):
    """The configuration with so many local views."""
    config = settings.load(None)
    changes = {
        "data.source": arguments.source, "data.data_dir": arguments.data_dir,
        "data.image_size": "224", "batch_size": str(arguments.batch_size),
        "crops.local_views": str(local_views), "crops.local_size": "96",
    }  # fmt: skip
    settings.override(config, changes)
    return settings.check(config)


def rate(batches, batch_size, num_batches):
    """Images per second after the first batches, some of which are ready beforehand."""
    for _ in range(SKIPPED):
        next(batches)
    start = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    return batch_size * num_batches / seconds


def corner(index, image):
    """Keeps one pixel of a decoded image."""
    del index
    return tf.ensure_shape(image[:1, :1], [1, 1, 3])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True)
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    size, count = arguments.batch_size, arguments.batches
    configs = {f"2 + {local} views": configured(arguments, local) for local in LOCAL_VIEWS}
    source = sources.open_source(configs["2 + 0 views"].data, "train")
    rates = {name: [] for name in (*configs, "decoding")}
    for _ in range(arguments.rounds):
        for name, config in configs.items():
            batches = input_pipeline.train_batches(
                source, config, 0, count + SKIPPED, local_views=True
            )
            rates[name].append(rate(batches, size, count))
        batches = input_pipeline.test_batches(source, corner, size)
        rates["decoding"].append(rate(batches, size, count))
    decoding = statistics.median(rates["decoding"])
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"{name:12} {median:7.0f} images/s  {median / decoding:.2f} of decoding")


if __name__ == "__main__":
    main()

"""Time and peak memory of embeddings, neighbors and duplicates for a million synthetic rows.

    python tests/benchmarks/million_rows.py [--rows 1000000] [--features 512] [--duplicates]

Rows are random unit vectors, written with the functions of the job `embed`; one in ten thousand has
a near copy. Without `--duplicates`, the search of all pairs is left out: its time grows with the
square of the rows.
"""

import argparse
import itertools
import resource
import tempfile
import time

import numpy as np
from etils import epath

from gsjax.evaluate import duplicates, embeddings, nearest, write_embeddings
from gsjax.evaluate.embeddings import Embeddings, Layout
from gsjax.evaluate.features import Features

QUERIES, K, ABOVE = 1000, 10, 0.95


def rows_of(indices, features):
    """Random unit rows [n, F]; row 10,000 i + 5,000 is nearly row 10,000 i."""
    generator = np.random.default_rng(int(indices[0]))
    rows = generator.normal(size=(len(indices), features)).astype(np.float32)
    for place in np.flatnonzero(indices % 10_000 == 5_000):
        if place >= 5_000:
            rows[place] = rows[place - 5_000] + 0.05 * rows[place]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(folder, layout, features):
    """Writes all rows; returns how many near copies there are."""
    copies = 0
    write_embeddings.claim(folder, {"part_rows": layout.part_rows})
    for part in range(layout.num_parts):
        indices = layout.rows_of(part)
        rows = rows_of(indices, features)
        copies += int(np.sum(np.flatnonzero(indices % 10_000 == 5_000) >= 5_000))
        with write_embeddings.part_writer(folder, part) as add:
            for begin in range(0, len(indices), embeddings.GROUP_ROWS):
                own = slice(begin, begin + embeddings.GROUP_ROWS)
                count = len(indices[own])
                labels, valid = np.full(count, -1, np.int32), np.ones(count, bool)
                block = Features(rows[own], labels, indices[own], valid)
                paths = [f"images/{i:07}.jpg" for i in indices[own]]
                add(write_embeddings.to_block(block, paths, np.dtype("float32")))
    facts = {"num_rows": layout.num_rows, "num_features": features, "num_damaged": 0}
    write_embeddings.complete(folder, facts, [])
    return copies


def measured(what, begin):
    """Prints seconds and the peak memory of the process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {time.monotonic() - begin:.1f} s, peak memory {peak:.2f} GiB", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--duplicates", action="store_true")
    arguments = parser.parse_args()
    layout = Layout(arguments.rows, 16384)
    with tempfile.TemporaryDirectory() as folder:
        folder = epath.Path(folder) / "million"
        begin = time.monotonic()
        copies = write(folder, layout, arguments.features)
        measured(f"writing {arguments.rows} x {arguments.features}", begin)
        saved = Embeddings(folder)
        queries = next(saved.chunks(QUERIES)).embedding
        begin = time.monotonic()
        parts = ((rows.embedding, rows.indices) for rows in saved.chunks())
        _, found = nearest.find_in_parts(parts, queries, K)
        measured(f"{K} neighbors of {QUERIES} queries", begin)
        assert (found[:, 0] == np.arange(QUERIES)).all()
        if not arguments.duplicates:
            return
        begin = time.monotonic()
        groups = duplicates.find_groups(
            lambda first: (rows.embedding for rows in saved.chunks(duplicates.BLOCK, first)),
            saved.num_valid,
            saved.num_features,
            ABOVE,
        )
        measured("near duplicates among all pairs", begin)
        assert len(groups.members) == copies, (len(groups.members), copies)
        pairs = itertools.chain.from_iterable(groups.members)
        assert all(number % 5_000 == 0 for number in pairs)


if __name__ == "__main__":
    main()

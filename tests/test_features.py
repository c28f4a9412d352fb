"""Feature extraction: every image once, in order, whatever the batch and the devices."""

import jax
import numpy as np
import pytest

from gsjax import defaults, parallel
from gsjax.data import input_pipeline, photos, sources
from gsjax.evaluate import features

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 300), (4, 300), (4, 2000), (4, 4096)])
def test_rows_equal_the_images_in_order(devices, batch_size):
    data = defaults.get_config().data
    source = sources.open_source(data, "test", labelled=True)
    mesh = parallel.create_mesh(batch_size, jax.devices()[:devices])
    pixels_fn = features.create_pixels_fn(MEAN, STD, np.float32, mesh)
    batches = input_pipeline.test_batches(source, 32, batch_size)
    done = []
    rows, labels = features.extract(pixels_fn, {}, batches, mesh, done.append)
    tiles, expected_labels = photos.tiles("test", 32)
    expected = (tiles / 255 - MEAN) / STD
    np.testing.assert_allclose(rows, expected.reshape(len(tiles), -1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(labels, expected_labels)
    assert done == list(range(1, -(-2000 // batch_size) + 1))

"""Feature extraction: every image once, in order, whatever the batch and the devices."""

import jax
import numpy as np
import pytest
from PIL import Image

from gsjax.config import defaults
from gsjax.data import photos, sources, transforms
from gsjax.errors import UserError
from gsjax.evaluate import features, monitor
from gsjax.models import resnet
from gsjax.runtime import parallel

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SMALL = transforms.central(8)


def extract(source, devices, batch_size, transform=SMALL, indices=None):
    mesh = parallel.create_mesh(devices, jax.devices()[:devices])
    pixels_fn = features.create_encode_fn(monitor.Pixels(), MEAN, STD, np.float32, mesh)
    return features.extract(pixels_fn, {}, source, transform, batch_size, mesh, "test", indices)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 300), (4, 300), (4, 2000), (4, 4096)])
def test_rows_equal_the_images_in_order(devices, batch_size):
    source = sources.open_source(defaults.get_config().data, "test", labeled=True)
    rows = extract(source, devices, batch_size, transforms.central(32))
    tiles, labels = photos.tiles("test", 32)
    expected = ((tiles / 255 - MEAN) / STD).reshape(len(tiles), -1)
    np.testing.assert_allclose(rows.feature, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(rows.label, labels)
    np.testing.assert_array_equal(rows.indices, np.arange(2000))
    assert rows.valid.all() and rows.decoded() is rows


@pytest.fixture
def folder(tmp_path):
    """A source of 50 pictures, of which number 3, 30 and the last are damaged."""
    generator = np.random.default_rng(0)
    for i in range(50):
        path = tmp_path / f"{i:02}.png"
        Image.fromarray(generator.integers(0, 256, (12, 9, 3), dtype=np.uint8)).save(path)
        if i in (3, 30, 49):
            path.write_bytes(b"" if i == 3 else path.read_bytes()[:70])
    config = defaults.get_config().data
    config.source, config.data_dir = "folder", str(tmp_path)
    return sources.open_source(config, "")


def test_a_damaged_picture_keeps_its_row_and_is_named(folder, capsys):
    reference = extract(folder, 1, 50)
    damaged = np.isin(np.arange(50), [3, 30, 49])
    np.testing.assert_array_equal(reference.valid, ~damaged)
    assert (reference.feature[damaged] == 0).all()
    assert (reference.feature[~damaged].std(axis=1) > 0.1).all()
    assert features.report(folder, reference) is reference
    output = capsys.readouterr().out
    assert "left out 3 of 50 images that cannot be decoded" in output and "/03.png" in output
    assert len(reference.decoded().label) == 47
    for devices in (1, 4):
        for batch_size in (7, 64, 1000):
            rows = extract(folder, devices, batch_size)
            for column, expected in zip(rows, reference, strict=True):
                np.testing.assert_allclose(column, expected, rtol=1e-5, atol=1e-5)


def test_an_encoders_rows_depend_on_neither_devices_nor_batch(folder):
    config = defaults.get_config().encoder
    config.width = 4
    encoder = resnet.create(config)
    images = np.zeros((1, 16, 16, 3), np.float32)
    variables = jax.jit(lambda: encoder.init(jax.random.key(0), images, train=False))()
    rows = []
    for devices in (1, 4):
        mesh = parallel.create_mesh(devices, jax.devices()[:devices])
        encode_fn = features.create_encode_fn(encoder, MEAN, STD, np.float32, mesh)
        for batch_size in (7, 64):
            transform = transforms.central(16)
            args = (encode_fn, variables, folder, transform, batch_size, mesh, "test")
            rows.append(features.extract(*args))
    for other in rows[1:]:
        np.testing.assert_allclose(other.feature, rows[0].feature, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(other.valid, rows[0].valid)
    assert rows[0].feature.shape == (50, 32) and rows[0].feature[0].std() > 1e-3


def test_some_pictures_alone(folder):
    whole, some = extract(folder, 4, 16), extract(folder, 4, 16, indices=np.array([2, 3, 40]))
    np.testing.assert_array_equal(some.indices, [2, 3, 40])
    np.testing.assert_array_equal(some.valid, [True, False, True])
    np.testing.assert_allclose(some.feature, whole.feature[[2, 3, 40]], atol=1e-6)


def test_nothing_but_damaged_pictures(folder):
    rows = extract(folder, 1, 8, indices=np.array([3, 30]))
    with pytest.raises(UserError, match="none of the images can be decoded"):
        features.report(folder, rows)


def test_features_that_are_not_finite(folder):
    rows = extract(folder, 1, 64)
    rows.feature[5, 7] = np.nan
    with pytest.raises(UserError, match="not finite"):
        features.report(folder, rows)

"""Settings of the augmentation with one value per view."""

import jax
import numpy as np
import pytest

from gsjax.config import defaults, per_view, settings
from gsjax.crops import Crops
from gsjax.errors import UserError
from gsjax.train import step

OFF = ("flip", "jitter", "gray", "blur", "solarize")


def configured(local_views=0, **values):
    config = settings.load(None)
    texts = dict.fromkeys(OFF, "0") | values
    settings.override(config, {f"augment.{name}": text for name, text in texts.items()})
    settings.override(config, {"crops.local_views": str(local_views)})
    return settings.check(config)


def augmented(config, num_views):
    images = np.random.default_rng(0).integers(0, 256, (4, num_views, 8, 8, 3)).astype(np.uint8)
    crops = {"global": Crops(images, np.ones((4, num_views, 4), np.float32))}
    augment = jax.jit(lambda key: step.augment_views(crops, key, np.arange(4), config))
    mean, std = step.normalization(config)
    plain = (images / 255 - np.array(mean)) / np.array(std)
    return np.asarray(augment(jax.random.key(1))["global"]), plain


def test_each_view_has_its_own_value_and_further_views_the_last():
    views, plain = augmented(configured(flip="0,1.0"), 4)
    np.testing.assert_allclose(views[:, 0], plain[:, 0], atol=1e-5)
    np.testing.assert_allclose(views[:, 1:], plain[:, 1:, :, ::-1], atol=1e-5)
    views, plain = augmented(configured(1, flip="1,0,1"), 3)
    np.testing.assert_allclose(views[:, ::2], plain[:, ::2, :, ::-1], atol=1e-5)
    np.testing.assert_allclose(views[:, 1], plain[:, 1], atol=1e-5)


def test_a_list_of_equal_values_is_that_value():
    one, _ = augmented(configured(flip="0.5", jitter="0.8", blur="0.5"), 2)
    listed, _ = augmented(configured(flip="0.5,0.5", jitter="0.8", blur="0.5,0.5"), 2)
    np.testing.assert_array_equal(one, listed)


def test_a_view_does_not_depend_on_the_settings_of_the_other():
    one, _ = augmented(configured(flip="0.5", jitter="0.8", blur="0.5"), 2)
    other, _ = augmented(configured(flip="0.5", jitter="0.8,0", blur="0.5,0", solarize="0,1"), 2)
    np.testing.assert_allclose(one[:, 0], other[:, 0], atol=1e-5)
    assert np.abs(one[:, 1] - other[:, 1]).max() > 0.1


def test_lists_in_a_config_file(tmp_path):
    (tmp_path / "own.py").write_text(
        "from gsjax.config import defaults\n\n\ndef get_config():\n"
        "    config = defaults.get_config()\n"
        '    config.augment.blur, config.augment.flip = "1.0,0.1", 1\n'
        "    return config\n"
    )
    config = settings.check(settings.load(str(tmp_path / "own.py")))
    views = per_view.augmentations(config.augment, 3)
    assert [view.blur for view in views] == [1.0, 0.1, 0.1]
    assert [view.flip for view in views] == [1, 1, 1]
    assert config.augment.blur == "1.0,0.1"  # as written, also in config.json


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"blur": "1.0,much"}, "augment.blur is '1.0,much'; it must be from 0 to 1; or comma-sep"),
        ({"blur": "0.5,1.5"}, "augment.blur is '0.5,1.5'; it must be from 0 to 1; or comma-sep"),
        ({"hue": "0.1,"}, "augment.hue is '0.1,'; it must be from 0 to 0.5; or comma-separated"),
        ({"blur": "much"}, "augment.blur: 'much' is not a number"),
        ({"min_sigma": "0.1,3"}, "augment.min_sigma is above augment.max_sigma"),
        ({"flip": "0,1,0"}, "augment.flip lists 3 values for 2 views"),
        ({"local_views": 2, "flip": "0,1,0,1,0"}, "augment.flip lists 5 values for 4 views"),
        ({"local_views": 2, "min_scale": "0.2,0.2,0.1"}, "lists 3 values for 2 global views; loc"),
    ],
)
def test_wrong_lists_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        configured(**values)


def test_only_the_augmentation_has_lists():
    lists = {key for key, setting in defaults.SETTINGS.items() if setting.per_view}
    assert lists and all(key.startswith("augment.") for key in lists)
    config = settings.load(None)
    with pytest.raises(UserError, match="similarity.threshold: '0.1,0.2' is not a number"):
        settings.override(config, {"similarity.threshold": "0.1,0.2"})
